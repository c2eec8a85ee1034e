"""How fast does a T5 generate: fivefold's T5 against transformers' T5, the same weights, the same tokens out.

python benchmarks/t5_generation.py [--size small] [--rounds 3] [--threads 2] [--output FILE]

Greedy decoding with a cache through `generate()`: 1 and 16 sources of 128 tokens, 64 new tokens each, the end token
forbidden so that both write all of them. The libraries take turns in one process; a round is one call of each. Where
rounding lets two tokens change places, the share of equal ones is below 100%.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from machine import measured_on

from fivefold import T5Config, T5Model

SOURCE, NEW_TOKENS = 128, 64


def models(size: str, dtype: torch.dtype) -> dict[str, Any]:
    """The same weights in both libraries."""
    torch.manual_seed(0)
    ours = T5Model(T5Config.get_config(size)).to(dtype).eval()
    with tempfile.TemporaryDirectory() as folder:
        ours.save_pretrained(folder)
        theirs = transformers.T5ForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
    return {"transformers": theirs, "fivefold": ours}


@torch.no_grad()
def measure(pair: dict[str, Any], batch: int, rounds: int) -> tuple[dict[str, list[float]], float]:
    """Tokens a second of each round, and the share of tokens on which both agree."""
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(3, 32000, (batch, SOURCE), generator=generator)
    speeds: dict[str, list[float]] = {name: [] for name in pair}
    written = {}
    for round_number in range(rounds + 1):  # the first warms up
        for name, model in pair.items():
            start = time.perf_counter()
            written[name] = model.generate(
                input_ids=source, attention_mask=torch.ones_like(source), do_sample=False,
                min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS,
            )  # fmt: skip
            if round_number:
                speeds[name].append(batch * NEW_TOKENS / (time.perf_counter() - start))
    ours, theirs = written["fivefold"], written["transformers"]
    assert ours.shape == theirs.shape == (batch, NEW_TOKENS + 1)
    return speeds, float((ours == theirs).float().mean())


def table(size: str, rounds: int) -> str:
    """Run everything and lay the results out."""
    lines = [
        f"T5 v1.1 {size}, greedy, {SOURCE} tokens in and {NEW_TOKENS} out, {torch.get_num_threads()} threads; median "
        f"of {rounds} calls of each library, taking turns; slowest to fastest in brackets.",
        "",
        measured_on("transformers"),
        "",
        "| dtype | batch | transformers, tokens/s | fivefold, tokens/s | ratio | equal tokens |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        pair = models(size, dtype)
        for batch in (1, 16):
            speeds, equal = measure(pair, batch, rounds)
            medians = {name: statistics.median(values) for name, values in speeds.items()}
            cells = [
                f"{medians[name]:,.0f} ({min(values):,.0f} .. {max(values):,.0f})" for name, values in speeds.items()
            ]
            ratio = medians["fivefold"] / medians["transformers"]
            name = str(dtype).removeprefix("torch.")
            lines.append(f"| {name} | {batch} | {' | '.join(cells)} | **{ratio:.2f}x** | {equal:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = table(arguments.size, arguments.rounds)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
