"""How fast is LoRA on a real decoder: fivefold's packed rows against a plain loop on the same rows, and TRL.

python benchmarks/finetune.py [--steps 3] [--rounds 2] [--threads 2] [--model FOLDER] [--output FILE]

SmolLM2-135M (out of a package, `tests/real_models.py`) learns en_instructions with LoRA of rank 4 on all seven kinds of
layers, in bfloat16 autocast with gradient checkpointing: fivefold with --packing in rows of 512 tokens, four a step;
a plain loop of transformers and peft on the same rows, with both kinds of checkpointing and on examples padded to the
longest; and TRL's SFTTrainer as it comes, in bfloat16, whose micro-batches hold as many examples. Each
measurement is a process of its own, the first step is not counted, and the variants take turns. Peak memory is less
what the imports take.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from machine import in_own_process, measured_on
from sft import examples_of, loss_of, plain_steps, print_measured, table, trainer_steps, usual_loss

ROWS, ROW_LENGTH, EXAMPLES = 4, 512, 8
LORA = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "bias": "none",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
OURS, REENTRANT, TRL = "fivefold, packed", "transformers + peft, packed, reentrant checkpointing", "TRL"
VARIANTS = (OURS, "transformers + peft, packed", REENTRANT, "transformers + peft, padded", TRL)


def real_model(name: str, folder: Path) -> Path:
    """The folder of a real model, written there by the tests' script if it is not yet."""
    if not (folder / name / "config.json").is_file():
        script = Path(__file__).parents[1] / "tests" / "real_models.py"
        subprocess.run([sys.executable, str(script), str(folder), name], check=True, stdout=subprocess.DEVNULL)
    return folder / name


def measure(variant: str, folder: Path, num_steps: int, threads: int) -> None:
    """Train a few steps and print JSON."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq
    from trl import SFTConfig, SFTTrainer

    from fivefold.adapters.attach import attach_adapter
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.dialogues import build_dialogues
    from fivefold.data.loader import tensors
    from fivefold.data.settings import DialogueSettings
    from fivefold.lowrank.settings import LowRankSettings
    from fivefold.models.build import build_model
    from fivefold.models.settings import ModelSettings
    from fivefold.objectives.causal import CausalObjective
    from fivefold.tokenizer.chat_format import ChatFormat
    from fivefold.tokenizer.load import load_tokenizer

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    tokenizer: Any = load_tokenizer(folder)
    single, packed = (
        build_dialogues(
            CorpusSettings(["en_instructions"]),
            DialogueSettings(input_length=ROW_LENGTH, packing=packing, validation_frac=0.0),
            ChatFormat(tokenizer, "llama"),
            seed=0,
        ).training
        for packing in (False, True)
    )
    accumulation = max(1, round(ROWS * single.samples_per_epoch / packed.samples_per_epoch / EXAMPLES))
    imports_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if variant == OURS:
        settings = ModelSettings(model=str(folder), gradient_checkpointing=True)
        model: Any = build_model(settings, LowRankSettings(), tokenizer, 0, default_init="spectral")[0]
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(json.dumps(LORA))
            file.flush()
            model = attach_adapter(model, file.name, str(folder), seed=0)
    else:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
        if variant != TRL:  # which does both by itself
            model.gradient_checkpointing_enable({"use_reentrant": variant == REENTRANT})
            model.enable_input_require_grads()
    if "packed" in variant:
        rows = np.arange((num_steps + 1) * ROWS).reshape(num_steps + 1, -1)
        steps = [[tensors(packed.batch(some))] for some in rows]
        measured = plain_steps(model, steps, loss_of(CausalObjective) if variant == OURS else usual_loss, "llama")
    elif variant == TRL:
        from datasets import Dataset

        settings = SFTConfig(
            per_device_train_batch_size=EXAMPLES,
            gradient_accumulation_steps=accumulation,
            max_steps=num_steps + 1,
            learning_rate=1e-4,
            max_length=ROW_LENGTH,
            bf16=True,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            output_dir=tempfile.mkdtemp(),
        )
        data = Dataset.from_list(examples_of(single, np.arange(single.samples_per_epoch)))
        given = {"train_dataset": data, "processing_class": tokenizer}
        measured = trainer_steps(SFTTrainer, "llama", model, settings, **given)
    else:
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        numbers = np.arange((num_steps + 1) * accumulation * EXAMPLES).reshape(num_steps + 1, accumulation, EXAMPLES)
        steps = [[collator(examples_of(single, some)) for some in step] for step in numbers]
        measured = plain_steps(model, steps, usual_loss, "llama")
    print_measured(measured, imports_kib)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="folder of SmolLM2-135M, where there is one already")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        variant, folder = arguments.measure
        measure(variant, Path(folder), arguments.steps, arguments.threads)
        return
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in arguments.variants}
    with tempfile.TemporaryDirectory() as work:
        folder = arguments.model or real_model("smollm2", Path(work))
        for _ in range(arguments.rounds):
            for variant in arguments.variants:
                words = ["--measure", variant, folder, "--steps", arguments.steps, "--threads", arguments.threads]
                results[variant].append(in_own_process(__file__, *words))
    lines = [
        f"SmolLM2-135M, LoRA of rank 4, en_instructions; {arguments.threads} thread(s), bfloat16 autocast, gradient "
        f"checkpointing; {arguments.rounds} processes of {arguments.steps} steps each take turns. Median process, "
        "slowest to fastest in brackets; padding does not count.",
        "",
        measured_on("transformers", "peft", "trl"),
        "",
        *table(results),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
