"""How fast is supervised fine-tuning: fivefold's packed rows against the padded batches of the usual trainers.

python benchmarks/sft.py [--families t5 llama] [--steps 4] [--rounds 2] [--threads 2] [--output FILE]

The same conversations, weights and bfloat16 autocast for all, padding not counted. T5 v1.1 small, whole, learns
zh_instructions: fivefold with --packing in rows of 128 and 512 tokens, against transformers' Seq2SeqTrainer with its
collator, which pads to the longest. A LLaMA of the shape of SmolLM2-135M learns en_instructions with LoRA of rank 8 on
every layer: fivefold with --packing in rows of 512, against a plain loop of transformers and peft on the same rows and
on examples padded to the longest, and TRL's SFTTrainer as it comes, in bfloat16, with gradient checkpointing off as in
the others. A step is 8 packed rows of a T5 or 4 of a decoder, or as many examples as have about as many tokens, padded
in micro-batches of 16 or 8. Each measurement is a process of its own, the first step is not counted, and the variants
take turns. Peak memory is less what the imports take.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from machine import in_own_process, measured_on
from t5_training import build

VOCAB_SIZE, LORA_RANK = 8192, 8
SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


class Family(NamedTuple):
    """What one family learns from, and how much at once."""

    corpus: str
    input_length: int
    target_length: int
    rows_at_once: int
    examples_at_once: int
    variants: tuple[str, ...]


FAMILIES = {
    "t5": Family("zh_instructions", 128, 512, 8, 16, ("fivefold, packed", "Seq2SeqTrainer, padded")),
    "llama": Family(
        "en_instructions",
        512,
        384,
        4,
        8,
        ("fivefold, packed", "transformers + peft, packed", "transformers + peft, padded", "TRL"),
    ),
}


def sources(family: str, tokenizer_folder: Path) -> tuple[Any, Any]:
    """The examples one by one, and packed."""
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.dialogues import build_dialogues
    from fivefold.data.settings import DialogueSettings
    from fivefold.tokenizer.chat_format import ChatFormat
    from fivefold.tokenizer.load import load_tokenizer

    what = FAMILIES[family]

    def build_source(packing: bool) -> Any:
        settings = DialogueSettings(
            input_length=what.input_length, target_length=what.target_length, packing=packing, validation_frac=0.0
        )
        chat = ChatFormat(load_tokenizer(tokenizer_folder), "t5" if family == "t5" else "llama")
        return build_dialogues(CorpusSettings([what.corpus]), settings, chat, seed=0).training

    return build_source(False), build_source(True)


def examples_of(source: Any, numbers: np.ndarray) -> list[dict[str, list[int]]]:
    """Single examples as lists of ids, as the trainers' collators take them."""
    examples = []
    for number in numbers:
        batch = source.batch(np.array([number]))
        examples.append({name: batch[name][0].tolist() for name in ("input_ids", "labels")})
    return examples


def model_of(family: str, is_ours: bool) -> Any:
    """The model, with an adapter where it is a decoder."""
    import torch

    if family == "t5":
        from fivefold import T5Config

        return build("fivefold" if is_ours else "transformers", T5Config.get_config("small", dropout_rate=0.0))[0]
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMOLLM2))
    return get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"))


def useful_tokens(batch: dict[str, Any], family: str) -> int:
    """Tokens read and written, padding left out."""
    if "segments" in batch:
        inputs = int((batch["segments"] != 0).sum())
    else:
        inputs = int(batch["attention_mask"].sum()) if "attention_mask" in batch else batch["input_ids"].numel()
    return inputs + (int((batch["labels"] != -100).sum()) if family == "t5" else 0)


def loss_of(objective_class: Any) -> Callable[[Any, dict[str, Any], int], Any]:
    """Fivefold's loss as `plain_steps` wants it."""
    from fivefold.objectives.settings import LossSettings

    objective = objective_class(LossSettings(z_loss=0.0))
    return lambda model, batch, count: objective(model, batch).loss_sum / count


def usual_loss(model: Any, batch: dict[str, Any], count: int) -> Any:
    """The loss of transformers' models; positions that begin anew tell them of several examples in a row."""
    from fivefold.objectives.causal import positions_within

    places = {"position_ids": positions_within(batch["segments"])} if "segments" in batch else {}
    given = {name: tensor for name, tensor in batch.items() if name != "segments"}
    return model(**given, **places, use_cache=False, num_items_in_batch=count).loss


def plain_steps(
    model: Any, steps: list[list[dict[str, Any]]], loss_of: Callable[[Any, dict[str, Any], int], Any], family: str
) -> list[tuple[float, int]]:
    """Seconds and useful tokens of each step of the usual loop."""
    import torch

    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-4, fused=True
    )
    model.train()
    measured = []
    for batches in steps:
        start = time.perf_counter()
        num_targets = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16):
                loss_of(model, batch, num_targets).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        measured.append((time.perf_counter() - start, sum(useful_tokens(batch, family) for batch in batches)))
    return measured


def trainer_steps(trainer_class: Any, family: str, model: Any, arguments: Any, **more: Any) -> list[tuple[float, int]]:
    """The same of a Trainer, whose own loop is timed from the outside."""
    from transformers import TrainerCallback

    times, tokens = [], []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            times.append([time.perf_counter(), 0.0])

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times[-1][1] = time.perf_counter()

    class Counting(trainer_class):
        def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
            tokens.append((len(times), useful_tokens(inputs, family)))
            return super().training_step(model, inputs, *rest)

    Counting(model=model, args=arguments, callbacks=[Clock()], **more).train()
    counts = [sum(count for step, count in tokens if step == number + 1) for number in range(len(times))]
    return [(end - start, count) for (start, end), count in zip(times, counts, strict=True)]


def measure(family: str, variant: str, folder: Path, num_steps: int, threads: int) -> None:
    """Train a few steps and print JSON."""
    import peft  # noqa: F401 - all processes import the same
    import torch
    import transformers.models.t5.modeling_t5  # noqa: F401
    import trl  # noqa: F401
    from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments
    from trl import SFTConfig, SFTTrainer

    from fivefold.data.loader import tensors
    from fivefold.objectives.causal import CausalObjective
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.tokenizer.load import load_tokenizer

    torch.set_num_threads(threads)
    what, (single, packed) = FAMILIES[family], sources(family, folder)
    share = single.samples_per_epoch / packed.samples_per_epoch
    accumulation = max(1, round(what.rows_at_once * share / what.examples_at_once))
    tokenizer: Any = load_tokenizer(folder)
    imports_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = model_of(family, is_ours=variant.startswith("fivefold"))
    common = {
        "per_device_train_batch_size": what.examples_at_once,
        "gradient_accumulation_steps": accumulation,
        "max_steps": num_steps + 1,
        "learning_rate": 1e-4,
        "bf16": True,
        "use_cpu": True,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "output_dir": str(folder / "trainer"),
    }
    numbers = np.arange(single.samples_per_epoch)
    own_loss = loss_of(Seq2SeqObjective if family == "t5" else CausalObjective)
    if variant.endswith(", packed"):
        rows = np.arange((num_steps + 1) * what.rows_at_once).reshape(num_steps + 1, -1)
        steps = [[tensors(packed.batch(some))] for some in rows]
        measured = plain_steps(model, steps, own_loss if variant.startswith("fivefold") else usual_loss, family)
    elif variant.startswith("Seq2SeqTrainer"):
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        settings = Seq2SeqTrainingArguments(**common)
        data = {"train_dataset": examples_of(single, numbers), "data_collator": collator}
        measured = trainer_steps(Seq2SeqTrainer, family, model, settings, **data)
    elif variant == "TRL":
        settings = SFTConfig(**common, gradient_checkpointing=False, max_length=what.input_length)
        from datasets import Dataset

        rows = Dataset.from_list(examples_of(single, numbers))
        measured = trainer_steps(SFTTrainer, family, model, settings, train_dataset=rows, processing_class=tokenizer)
    else:
        collator = DataCollatorForSeq2Seq(tokenizer, padding=True)
        at_once = numbers[: (num_steps + 1) * accumulation * what.examples_at_once].reshape(
            num_steps + 1, accumulation, what.examples_at_once
        )
        steps = [[collator(examples_of(single, some)) for some in step] for step in at_once]
        measured = plain_steps(model, steps, usual_loss, family)
    print_measured(measured, imports_kib)


def print_measured(measured: list[tuple[float, int]], imports_kib: int) -> None:
    """Speed of all steps but the first, and peak memory, as JSON."""
    seconds, tokens = (sum(values[1:]) for values in zip(*measured, strict=True))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports_kib) * 1024
    print(json.dumps({"tokens_per_second": tokens / seconds, "tokens": tokens, "bytes": peak}))


def section(family: str, arguments: argparse.Namespace, folder: Path) -> list[str]:
    """One family: a tokenizer for its corpus, and a row for each variant."""
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.conversations import open_conversations
    from fivefold.tokenizer.save import save_tokenizer
    from fivefold.tokenizer.settings import TokenizerSettings
    from fivefold.tokenizer.train import train_tokenizer

    what = FAMILIES[family]
    texts = [m["content"] for record in open_conversations(CorpusSettings([what.corpus])) for m in record["messages"]]
    settings = TokenizerSettings(output_dir="", vocab_size=VOCAB_SIZE)
    save_tokenizer(train_tokenizer(iter(texts), settings).tokenizer, folder)
    single, packed = sources(family, folder)
    results: dict[str, list[dict[str, float]]] = {variant: [] for variant in what.variants}
    for _ in range(arguments.rounds):
        for variant in what.variants:
            words = ["--measure", family, variant, folder, "--steps", arguments.steps, "--threads", arguments.threads]
            results[variant].append(in_own_process(__file__, *words))
    examples = f"{single.samples_per_epoch:,} examples in {packed.samples_per_epoch:,} rows"
    return [f"**{family}**, {what.corpus}: {examples}.", "", *table(results)]


def table(results: dict[str, list[dict[str, float]]]) -> list[str]:
    """A row for each variant, the first of which is fivefold."""
    speeds = {name: [run["tokens_per_second"] for run in runs] for name, runs in results.items()}
    memory = {name: statistics.median(run["bytes"] for run in runs) for name, runs in results.items()}
    own = next(iter(results))
    lines = [
        "| | useful tokens/s | fivefold is | peak memory | fivefold takes |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, values in speeds.items():
        ratio, share = "", ""
        if name != own:
            ratio = f"**{statistics.median(speeds[own]) / statistics.median(values):.2f}x**"
            share = f"**{memory[own] / memory[name]:.2f}x**"
        spread = f"{statistics.median(values):,.0f} ({min(values):,.0f} .. {max(values):,.0f})"
        lines.append(f"| {name} | {spread} | {ratio} | {memory[name] / 2**20:,.0f} MiB | {share} |")
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        family, variant, folder = arguments.measure
        measure(family, variant, Path(folder), arguments.steps, arguments.threads)
        return
    lines = [
        f"{arguments.threads} threads, bfloat16 autocast; {arguments.rounds} processes of {arguments.steps} steps each "
        "take turns. Median process, slowest to fastest in brackets; padding does not count.",
        "",
        measured_on("transformers", "peft", "trl"),
    ]
    with tempfile.TemporaryDirectory() as work:
        for family in arguments.families:
            lines += ["", *section(family, arguments, Path(work) / family)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
