"""Writing B branches of one main text together, against one after the other, and against transformers' `generate`.

python benchmarks/branch_decoding.py [--layers 30] [--length 2048] [--branches 16] [--tokens 64] [--threads 2]
    [--output FILE]

A decoder of SmolLM2-135M's shape with random weights in float32 goes on greedily from one prompt, the same number of
tokens in every branch. Seconds are those of all, the prompt's reading included; one after the other is `generate` with
one row, measured twice and multiplied. Memory is that of keys and values at the end. Each variant is a process of its
own.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from branches import VOCAB_SIZE, smollm2_shape
from machine import in_own_process, measured_on

from fivefold.branches.decode import greedy, open_writer
from fivefold.branches.model import prepare_for_branches
from fivefold.branches.settings import BranchScheme

ALONE, REPEATED = "generate, one after the other", "generate, the prompt repeated"
CACHES = {"branches, shared": "shared", "branches, flat": "flat", "branches, expanded": "expanded"}


def measure(variant: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Seconds in all, and bytes."""
    torch.set_num_threads(arguments.threads)
    model: Any = smollm2_shape(arguments.layers).get_base_model().eval()
    prompt = torch.randint(3, VOCAB_SIZE, (1, arguments.length))
    if variant in CACHES:
        scheme = BranchScheme(rope_2d_ratio=0.0)
        prepare_for_branches(model, scheme)
        start = time.perf_counter()
        with torch.no_grad():
            writer = open_writer(model, prompt[0].tolist(), [[]] * arguments.branches, scheme, CACHES[variant])  # type: ignore[arg-type]
            tokens = greedy(writer.begin(), [], 0)
            for step in range(1, arguments.tokens):
                tokens = greedy(writer.step(tokens, list(range(arguments.branches))), [], step)
        return {"seconds": time.perf_counter() - start, "bytes": writer.kv_bytes()}
    rows, times = (1, 2) if variant == ALONE else (arguments.branches, 1)
    ids = prompt.repeat(rows, 1)
    fixed = {"max_new_tokens": arguments.tokens, "min_new_tokens": arguments.tokens, "do_sample": False}
    start = time.perf_counter()
    for _ in range(times):
        done = model.generate(
            ids, attention_mask=torch.ones_like(ids), return_dict_in_generate=True, pad_token_id=0, **fixed
        )
    seconds = (time.perf_counter() - start) * arguments.branches / (rows * times)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in done.past_key_values.layers)
    return {"seconds": seconds, "bytes": held}


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    numbers = {"layers": 30, "length": 2048, "branches": 16, "tokens": 64, "threads": 2}
    for name, default in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    words = [word for name in numbers for word in (f"--{name}", getattr(arguments, name))]
    results = {
        variant: in_own_process(__file__, "--measure", variant, *words) for variant in (ALONE, REPEATED, *CACHES)
    }
    expanded = results["branches, expanded"]["bytes"]
    lines = [
        f"SmolLM2-135M's shape with {arguments.layers} layers, float32, {arguments.threads} thread(s): a prompt of "
        f"{arguments.length:,} tokens, {arguments.branches} branches of {arguments.tokens}.",
        "",
        measured_on("transformers"),
        "",
        "| | in all | faster than one by one | than the prompt repeated | keys and values | of the expanded cache |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant, found in results.items():
        gains = [f"{results[peer]['seconds'] / found['seconds']:.2f}x" for peer in (ALONE, REPEATED)]
        memory = [f"{found['bytes'] / 2**20:,.1f} MiB", f"1/{expanded / found['bytes']:.1f}"]
        seconds = f"{found['seconds']:.1f} s"
        lines.append(f"| {' | '.join([variant, seconds, *gains, *memory])} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
