"""Which adapter: parameters, time, memory and held-out loss of each method on two real models.

python benchmarks/adapters.py [--models smollm2 flan_t5] [--methods NAME ...] [--factors 1 5] [--steps 24] [--threads 2]
    [--folder FOLDER] [--output FILE]

SmolLM2-135M and flan-t5-small (out of packages, `tests/real_models.py`) learn en_instructions through `fivefold sft`,
each method in a process of its own with the learning rate that is customary for its kind, and with multiples of it.
All see the same packed rows in the same order, in bfloat16; the held-out answers are those of three hundredths of the
conversations. A model's own loss, before any step, is the first row. Memory is the peak of the whole process.
"""

import argparse
import contextlib
import io
import json
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from finetune import real_model
from machine import in_own_process, measured_on

LENGTH, ROWS = 128, 4


class Method(NamedTuple):
    """A preset, and how it is trained."""

    preset: str
    lr: float
    optimizer: str = "adamw"
    base: tuple[str, ...] = ()
    """How the model under it is held, for decoders."""


METHODS = {
    "LoRA, r = 4": Method("lora_rank4", 2e-4),
    "LoRA, r = 8": Method("lora_rank8", 2e-4),
    "LoRA, r = 16": Method("lora_rank16", 2e-4),
    "DoRA, r = 8": Method("dora_rank8", 2e-4),
    "rsLoRA, r = 16": Method("rslora_rank16", 2e-4),
    "PiSSA, r = 8": Method("pissa_rank8", 2e-4),
    "LoRA+, r = 8": Method("lora_rank8", 1e-4, "loraplus"),
    "LoRA-FA, r = 8": Method("lora_rank8", 2e-4, "lorafa"),
    "IA3": Method("ia3", 3e-3),
    "OFT, blocks of 32": Method("oft", 4e-4),
    "BOFT": Method("boft", 4e-4),
    "VeRA, r = 64": Method("vera_rank64", 4e-3),
    "LoHa, r = 8": Method("loha_rank8", 1e-3),
    "LoKr, r = 8": Method("lokr_rank8", 1e-3),
    "AdaLoRA, r = 12 to 8": Method("adalora_rank8", 1e-3),
    "LoRA, r = 8, on 4 bits": Method("lora_rank8", 2e-4, base=("--use_4bit_quantization",)),
    "LoRA, r = 8, on 8 bits": Method("lora_rank8", 2e-4, base=("--use_8bit_quantization",)),
}
MODELS = {"smollm2": "SmolLM2-135M", "flan_t5": "flan-t5-small"}


def measure(folder: Path, name: str, factor: float, num_steps: int, threads: int) -> None:
    """Train with one method and print JSON."""
    import torch

    from fivefold.cli import main as fivefold

    torch.set_num_threads(threads)
    method = METHODS[name]
    with tempfile.TemporaryDirectory() as work:
        run = Path(work) / "run"
        flags = {
            "model": folder,
            "data": "en_instructions",
            "adapter": method.preset,
            "optimizer": method.optimizer,
            "lr": method.lr * factor,
            "scheduler": "linear",
            "warmup_steps": 2,
            "input_length": LENGTH,
            "batch_size": ROWS,
            "num_training_steps": num_steps,
            "validation_frac": 0.03,
            "eval_every": num_steps,
            "save_every": 0,
            "log_every": 1,
            "samples": 0,
            "output_dir": run,
        }
        words = [
            "sft",
            "--packing",
            *method.base,
            *(str(word) for flag, value in flags.items() for word in (f"--{flag}", value)),
        ]
        plan = io.StringIO()
        for more, out in ((["--dry_run"], plan), ([], sys.stderr)):
            with contextlib.redirect_stdout(out):
                if fivefold([*words, *more]):
                    sys.exit(f"fivefold {' '.join(words)} failed")
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "loss" in line]
    base, trained = (line["eval_loss"] for line in log if "eval_loss" in line)
    seen = [0, *(line["tokens_seen"] for line in steps)]
    seconds = [(line["tokens_seen"] - seen[place]) / line["tokens_per_second"] for place, line in enumerate(steps)]
    trains = re.search(r"of which ([\d,]+) train", plan.getvalue())
    assert trains
    result = {"parameters": trains[1], "seconds": statistics.median(seconds), "bytes": steps[-1]["memory_bytes"]}
    print(json.dumps(result | {"base": base, "loss": trained}))


def section(model: str, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """One model: a row for each method."""
    rates = "".join(f" | loss, {factor:g} x" for factor in arguments.factors)
    lines = [f"**{MODELS[model]}**", "", f"| | trains | a step | memory | rate{rates} |"]
    lines.append("| --- " * (5 + len(arguments.factors)) + "|")
    for name in arguments.methods:
        if METHODS[name].base and model == "flan_t5":
            continue
        words = [folder, name, *("--steps", arguments.steps, "--threads", arguments.threads)]
        runs = [in_own_process(__file__, "--measure", *words, "--factors", factor) for factor in arguments.factors]
        if name == arguments.methods[0]:
            lines.append("| none: the model as it is | 0 | | | " + f"| {runs[0]['base']:.3f} " * len(runs) + "|")
        best = min(run["loss"] for run in runs)
        losses = [f"**{run['loss']:.3f}**" if run["loss"] == best else f"{run['loss']:.3f}" for run in runs]
        seconds, memory = (statistics.median(run[key] for run in runs) for key in ("seconds", "bytes"))
        cells = [name, runs[0]["parameters"], f"{seconds:.2f} s", f"{memory / 2**20:,.0f} MiB"]
        lines.append(f"| {' | '.join([*cells, f'{METHODS[name].lr:g}', *losses])} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--factors", nargs="+", type=float, default=[1.0, 5.0], help="of the customary learning rates")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the real models are, or are to be written")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        folder, name = arguments.measure
        measure(Path(folder), name, arguments.factors[0], arguments.steps, arguments.threads)
        return
    lines = [
        f"en_instructions, {arguments.steps} steps of {ROWS} packed rows of {LENGTH} tokens (a T5's answers as many "
        f"more), bfloat16, {arguments.threads} thread(s). Held-out loss in nats a token of the answers, at the usual "
        "rate and at multiples of it, the best in bold; LoRA+'s rate is A's.",
        "",
        measured_on("transformers", "peft"),
    ]
    with tempfile.TemporaryDirectory() as work:
        for model in arguments.models:
            lines += ["", *section(model, real_model(model, arguments.folder or Path(work)), arguments)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
