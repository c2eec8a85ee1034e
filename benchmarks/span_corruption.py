"""How fast is span corruption on one core, against collators that go example by example?

    python benchmarks/span_corruption.py

Prints raw tokens per second and ratios. All three make the same kind of batch: T5's 512 in, 114 out, from 568 raw
tokens. The peers are written here, after the two patterns one meets: numpy for each example, and Python for each token.
"""

import argparse
import random
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from machine import measured_on

from fivefold.data.rows import Rows, seq2seq_batch
from fivefold.data.spans import raw_lengths, span_corruption

SENTINELS = np.arange(32_099, 31_999, -1)
EOS, PAD = 1, 0
DENSITY, SPAN = 0.15, 3.0
Batch = dict[str, np.ndarray]


def fivefold_batch(tokens: np.ndarray, step: int) -> Batch:
    """The library's way: the whole batch at once."""
    batch_size, length = tokens.shape
    sample_ids = np.arange(batch_size) + step * batch_size
    rows = Rows(tokens, np.full(batch_size, length))
    inputs, targets = span_corruption(
        rows, DENSITY, SPAN, seed=0, sample_ids=sample_ids, sentinels=SENTINELS, eos_id=EOS
    )
    return seq2seq_batch(inputs, targets, PAD)


def numpy_example(ids: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One example with numpy calls on its own short arrays."""
    num_noise = round(len(ids) * DENSITY)
    num_spans = round(num_noise / SPAN)

    def segment_lengths(total: int) -> np.ndarray:
        borders = np.arange(total - 1) < num_spans - 1
        generator.shuffle(borders)
        return np.bincount(np.cumsum(np.concatenate([[0], borders])))

    lengths = np.stack([segment_lengths(len(ids) - num_noise), segment_lengths(num_noise)], axis=1).ravel()
    starts = np.zeros(len(ids), np.int64)
    starts[np.cumsum(lengths)[:-1]] = 1
    noise = np.cumsum(starts) % 2 == 1
    sides = []
    for hidden in (noise, ~noise):
        first = hidden & ~np.concatenate([[False], hidden[:-1]])
        with_sentinels = np.where(first, SENTINELS[np.cumsum(first) - 1], ids)
        sides.append(np.append(with_sentinels[~hidden | first], EOS))
    return sides[0], sides[1]


def python_example(ids: list[int], generator: random.Random) -> tuple[list[int], list[int]]:
    """One example token by token."""
    num_noise = round(len(ids) * DENSITY)
    num_spans = round(num_noise / SPAN)

    def segment_lengths(total: int) -> list[int]:
        cuts = [0, *sorted(generator.sample(range(1, total), num_spans - 1)), total]
        return [end - start for start, end in pairwise(cuts)]

    inputs, targets, place = [], [], 0
    for number, (text, noise) in enumerate(
        zip(segment_lengths(len(ids) - num_noise), segment_lengths(num_noise), strict=True)
    ):
        for _ in range(text):
            inputs.append(ids[place])
            place += 1
        inputs.append(int(SENTINELS[number]))
        targets.append(int(SENTINELS[number]))
        for _ in range(noise):
            targets.append(ids[place])
            place += 1
    return [*inputs, EOS], [*targets, EOS]


def numpy_collator(tokens: np.ndarray, step: int) -> Batch:
    """A collator that loops over examples, each made with numpy."""
    generator = np.random.default_rng(step)
    inputs, targets = zip(*(numpy_example(ids, generator) for ids in tokens), strict=True)
    return {"input_ids": np.stack(inputs), "labels": np.stack(targets)}


def python_collator(tokens: np.ndarray, step: int) -> Batch:
    """A collator that loops over examples and tokens."""
    generator = random.Random(step)
    inputs, targets = zip(*(python_example(ids, generator) for ids in tokens.tolist()), strict=True)
    return {"input_ids": np.array(inputs), "labels": np.array(targets)}


def tokens_per_second(collate: Callable[[np.ndarray, int], Batch], tokens: np.ndarray, seconds: float) -> float:
    """The best of five timings, each of at least `seconds` / 5."""
    collate(tokens, 0)
    best, step = 0.0, 1
    for _ in range(5):
        start, num_batches = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < seconds / 5:
            collate(tokens, step)
            num_batches, step = num_batches + 1, step + 1
        best = max(best, num_batches * tokens.size / elapsed)
    return best


def main() -> None:
    """Time the three and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input_length", type=int, default=512, help="tokens of an input")
    parser.add_argument("--seconds", type=float, default=2.0, help="time spent on each cell")
    arguments = parser.parse_args()
    raw, target_length = raw_lengths(arguments.input_length, DENSITY, SPAN)
    print(f"Span corruption, {raw} raw tokens -> {arguments.input_length} in + {target_length} out, one core")
    print(measured_on("numpy"))
    print(
        f"{'batch':>5}  {'fivefold':>12}  {'numpy/example':>13}  {'Python/token':>12}  {'ratios':>14}   (raw tokens/s)"
    )
    generator = np.random.default_rng(0)
    for batch_size in (8, 32, 128):
        tokens = generator.integers(2, 32_000, (batch_size, raw)).astype(np.uint16)
        speeds = []
        for collate in (fivefold_batch, numpy_collator, python_collator):
            shapes = [array.shape for array in collate(tokens, 0).values()]
            assert shapes == [(batch_size, arguments.input_length), (batch_size, target_length)], shapes
            speeds.append(tokens_per_second(collate, tokens, arguments.seconds))
        ratios = " ".join(f"{speeds[0] / speed:6.1f}x" for speed in speeds[1:])
        print(f"{batch_size:>5}  {speeds[0]:>12,.0f}  {speeds[1]:>13,.0f}  {speeds[2]:>12,.0f}  {ratios:>14}")


if __name__ == "__main__":
    main()
