"""How far off is the memory that a dry run predicts: the peak of a training process on this machine beside it.

python benchmarks/predicted_memory.py [--output FILE]

Each measurement is a process of its own that makes two steps in bfloat16 on full rows; its peak memory counts, less
what the imports take. Two ways: with every tensor's memory given back when it is freed, which is what the tensors need
at once, and with the C library's heap as it comes, which keeps some of it between them.
"""

import argparse
import ctypes
import json
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from machine import in_own_process, measured_on

GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


@dataclass(frozen=True)
class Case:
    """A model, its optimizer and its rows."""

    name: str
    shape: str
    rank: int | None
    rows: int
    lengths: tuple[int, int]
    packing: bool = False
    is_frozen: bool = False
    accumulation_steps: int = 1


CASES = (
    Case("T5 v1.1 small, AdamW, 8 x 512/114", "small", None, 8, (512, 114)),
    Case("modern_base at rank 192, loro_muon, 8 x 512/114", "modern_base", 192, 8, (512, 114)),
    Case("the same, embeddings frozen, 2 x 4 x 256/256 packed", "modern_base", 192, 4, (256, 256), True, True, 2),
)


def measure(case: Case) -> None:
    """Make two steps and print JSON: bytes predicted and at the peak."""
    import torch

    from fivefold.lowrank.settings import LowRankSettings
    from fivefold.models.build import build_model
    from fivefold.models.freeze import freeze
    from fivefold.models.settings import ModelSettings
    from fivefold.objectives.full_rows import full_pairs
    from fivefold.objectives.objective import Batch
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.objectives.settings import LossSettings
    from fivefold.training.optimizers import build_optimizer
    from fivefold.training.settings import LoopSettings, OptimizerSettings
    from fivefold.training.step_cost import step_cost

    def full_rows(rows: int) -> Batch:
        return full_pairs(rows, *case.lengths, packing=case.packing, may_pad=False)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    low_rank = LowRankSettings(loro_scope="all", loro_attn_rank=case.rank, loro_mlp_rank=case.rank)
    low_rank = low_rank if case.rank else LowRankSettings()
    settings = OptimizerSettings("loro_muon" if case.rank else "adamw")
    shape = ModelSettings("t5", case.shape, dropout_rate=0.0)
    model, _ = build_model(shape, low_rank, None, 0, default_init="dense")
    ctypes.CDLL(None).malloc_trim(0)  # of the dense weights that the factors came from
    if case.is_frozen:
        freeze(model, ["embeddings"])
    objective, optimizer = Seq2SeqObjective(LossSettings()), build_optimizer(model, settings)
    model.train()
    for _ in range(2):
        for _ in range(case.accumulation_steps):
            with torch.autocast("cpu", torch.bfloat16):
                loss = objective(model, full_rows(case.rows)).loss_sum / (case.rows * case.lengths[1])
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    sizes = {"micro_batch_size": case.rows, "accumulation_steps": case.accumulation_steps}
    predicted = step_cost(model, objective, full_rows, settings, LoopSettings(), **sizes).memory
    print(json.dumps({"predicted": predicted, "peak": peak}))


def table() -> str:
    """Run everything and lay the results out."""
    lines = [
        "Peak memory of training in bfloat16 on a CPU, one thread, two steps, imports aside, in GiB.",
        "",
        measured_on("transformers"),
        "",
        "| | predicted | of the tensors | with the C library's heap |",
        "| --- | --- | --- | --- |",
    ]
    for number, case in enumerate(CASES):
        cells = []
        for environment in (GIVEN_BACK, {}):
            for name in GIVEN_BACK:
                os.environ.pop(name, None)
            os.environ |= {"OMP_NUM_THREADS": "1", **environment}
            result = in_own_process(__file__, "--measure", number)
            predicted = result["predicted"] / 2**30
            measured = result["peak"] / 2**30
            cells.append(f"{measured:.2f} ({measured / predicted:.2f}x)")
        lines.append(f"| {case.name} | {predicted:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure is not None:
        measure(CASES[arguments.measure])
        return
    text = table()
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
