"""How a training step's time and memory grow with the length and with the batch, on a T5 of v1.1-small's shape.

python benchmarks/cost_growth.py [--model_config small] [--max_length 4096] [--max_batch 64] [--dtype bfloat16]
                                 [--steps 3] [--threads 2] [--output FILE.md] [--picture FILE.png]

A step is forward, loss and backward on random tokens, with the targets that span corruption gives an input of that
length; no dropout and no optimizer, whose cost does not grow. Lengths double from 128 at batch 1, batches from 1 at
length 128. Each point is a process of its own. Its memory is by how much its peak lies above that of steps on 8 tokens:
weights, their gradients and casts, and libraries, which do not grow either, are left out. Exponents are slopes of
straight lines through the logarithms: one fitted to all points, one through the last two. About six minutes on two
cores and 5 GB.
"""

import argparse
import json
import math
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

from machine import measured_on

FIRST_LENGTH = 128


def measure(model_config: str, length: int, batch_size: int, dtype: str, steps: int, threads: int) -> None:
    """Print JSON: median seconds of a step and the bytes it needs at most."""
    import torch

    from fivefold.data.spans import raw_lengths
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.objectives.settings import LossSettings
    from fivefold.t5.config import T5Config
    from fivefold.t5.model import T5Model

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = T5Model(T5Config.from_name_or_file(model_config, dropout_rate=0.0)).train()
    objective = Seq2SeqObjective(LossSettings())
    generator = torch.Generator().manual_seed(1)

    def step(length: int, batch_size: int) -> float:
        _, target_length = raw_lengths(length, noise_density=0.15, mean_span_length=3.0)
        batch = {
            name: torch.randint(3, model.config.vocab_size - 128, (batch_size, tokens), generator=generator)
            for name, tokens in (("input_ids", length), ("labels", target_length))
        }
        start = perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = objective(model, batch).loss_sum / objective.count(batch)
        loss.backward()
        return perf_counter() - start

    for _ in range(2):  # the second one has gradients to add to, as all that follow
        step(8, 1)
    least = _peak_bytes()
    seconds = [step(length, batch_size) for _ in range(steps + 1)][1:]
    print(json.dumps({"seconds": statistics.median(seconds), "bytes": max(1, _peak_bytes() - least)}))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def doubling(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ... up to `last`."""
    return [first << power for power in range((last // first).bit_length())]


def exponent(sizes: list[int], costs: list[float]) -> float:
    """Slope of the least-squares line through the logarithms."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def exponents(sizes: list[int], costs: list[float]) -> str:
    """Over all points, and between the last two."""
    if len(sizes) < 2:
        return ""
    return f"{exponent(sizes, costs):.2f} ({exponent(sizes[-2:], costs[-2:]):.2f})"


def table(name: str, sizes: list[int], points: list[dict[str, float]]) -> str:
    """One row a size, and the exponents."""
    lines = [f"| {name} | seconds a step | memory of a step |", "| --- | --- | --- |"]
    lines += [
        f"| {size} | {point['seconds']:.3f} | {point['bytes'] / 2**20:,.0f} MiB |"
        for size, point in zip(sizes, points, strict=True)
    ]
    by_cost = [exponents(sizes, [point[cost] for point in points]) for cost in ("seconds", "bytes")]
    return "\n".join([*lines, f"| exponent (of the last doubling) | {' | '.join(by_cost)} |"])


def draw(series: dict[str, tuple[list[int], list[dict[str, float]]]], file: Path) -> None:
    """Seconds and memory over the size, on logarithmic scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.5))
    for panel, cost, label in zip(panels, ("seconds", "bytes"), ("seconds a step", "MiB of a step"), strict=True):
        for name, (sizes, points) in series.items():
            scale = 1 if cost == "seconds" else 2**-20
            costs = [point[cost] * scale for point in points]
            tokens = [size * (1 if name == "length" else FIRST_LENGTH) for size in sizes]
            panel.loglog(tokens, costs, "o-", label=f"{name}, exponent {exponents(sizes, costs)}")
        panel.set(xlabel="input tokens a step", ylabel=label)
        panel.legend()
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure both series; print, write and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_config", default="small")
    parser.add_argument("--max_length", type=int, default=4096)
    parser.add_argument("--max_batch", type=int, default=64)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--measure", nargs=2, type=int, metavar=("LENGTH", "BATCH"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.measure:
        measure(words.model_config, *words.measure, words.dtype, words.steps, words.threads)
        return

    def point(length: int, batch_size: int) -> dict[str, float]:
        flags = [*sys.argv[1:], "--measure", str(length), str(batch_size)]
        done = subprocess.run([sys.executable, __file__, *flags], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"length {length}, batch {batch_size}: ended with {done.returncode}\n{done.stderr[-2000:]}")
        print(f"length {length}, batch {batch_size}: {done.stdout.strip()}", file=sys.stderr, flush=True)
        return json.loads(done.stdout)

    lengths, batches = doubling(FIRST_LENGTH, words.max_length), doubling(1, words.max_batch)
    series = {
        "length": (lengths, [point(length, 1) for length in lengths]),
        "batch": (batches, [point(FIRST_LENGTH, batch_size) for batch_size in batches]),
    }
    head = (
        f"T5 {words.model_config}, {words.dtype}, {words.threads} threads; median of {words.steps} steps, forward and "
        f"backward. {measured_on()}"
    )
    captions = {"length": "Batch 1, lengths of the input:", "batch": f"Length {FIRST_LENGTH}, batches:"}
    tables = [f"{captions[name]}\n\n{table(name, *values)}" for name, values in series.items()]
    text = "\n\n".join([head, *tables]) + "\n"
    print(text)
    if words.output:
        words.output.write_text(text)
    if words.picture:
        draw(series, words.picture)


if __name__ == "__main__":
    main()
