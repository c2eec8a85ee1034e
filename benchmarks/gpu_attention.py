"""What does T5's position bias cost on a GPU, and which tiles are the fastest for the kernel that computes it?

python benchmarks/gpu_attention.py [--lengths 512 1024 2048] [--tokens 16384] [--heads 12] [--head_dim 64] [--tune]

A line a length and way: T5's bias by the Triton kernel, the same as a trained matrix by torch's kernels, and no bias by
torch's. --tune times the Triton kernels with other tiles than `launch_settings` gives them.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch

from fivefold.nn import triton_attention
from fivefold.nn.attention import attention
from fivefold.nn.relative_bias import RelativePositionBias

KERNELS = ("forward", "grad_queries", "grad_keys")


def inputs_of(arguments: argparse.Namespace, length: int) -> tuple[list[torch.Tensor], RelativePositionBias]:
    """Queries, keys and values as projections leave them, and a table of biases."""
    batch = max(1, arguments.tokens // length)
    shape, device = (batch, length, arguments.heads, arguments.head_dim), arguments.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    made = [torch.randn(shape, device=device, dtype=dtype).transpose(1, 2).requires_grad_() for _ in range(3)]
    table = RelativePositionBias(32, arguments.heads, 128, is_bidirectional=True).to(device)
    return made, table


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """The median of ten calls, each waited for; two more before them warm up."""
    taken = []
    for _ in range(12 if device == "cuda" else 3):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[2:])


def ways_of(qkv: list[torch.Tensor], table: RelativePositionBias) -> dict[str, Callable[[], torch.Tensor]]:
    """What is compared."""
    length = qkv[0].shape[2]
    return {
        "Triton, T5's bias": lambda: attention(*qkv, bias=table.by_distance(), kernel="triton"),
        "torch, T5's bias as a matrix": lambda: attention(*qkv, bias=table(length, length), kernel="sdpa"),
        "torch, no bias": lambda: attention(*qkv, kernel="sdpa"),
    }


def gradients(way: Callable[[], torch.Tensor], leaves: list[torch.Tensor]) -> Any:
    """Forward and backward."""
    return torch.autograd.grad(way().sum(), leaves, allow_unused=True)


def compare(arguments: argparse.Namespace) -> None:
    """Print the table of lengths."""
    print("| length | way | forward ms | forward and backward ms |\n| --- | --- | --- | --- |")
    for length in arguments.lengths:
        qkv, table = inputs_of(arguments, length)
        for name, way in ways_of(qkv, table).items():
            forward = seconds_of(way, arguments.device)
            both = seconds_of(partial(gradients, way, [*qkv, table.weight]), arguments.device)
            print(f"| {length} | {name} | {1e3 * forward:.3f} | {1e3 * both:.3f} |", flush=True)


def tune(arguments: argparse.Namespace) -> None:
    """Print what each kernel takes with each tile, the other kernels as they are."""
    tiles = [(16, 16, 4, 1), (16, 32, 4, 1)]
    if arguments.device == "cuda":
        tiles = list(itertools.product((32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3)))
    for length, kernel in itertools.product(arguments.lengths, KERNELS):
        qkv, table = inputs_of(arguments, length)
        way = next(iter(ways_of(qkv, table).values()))
        work = way if kernel == "forward" else partial(gradients, way, [*qkv, table.weight])
        usual = triton_attention.launch_settings(kernel, arguments.head_dim, qkv[0].element_size())
        for tile in tiles:
            if kernel == "grad_queries" and tile[0] > tile[1]:
                continue  # it turns rows of M within N places
            settings = partial(_settings, triton_attention.launch_settings, kernel, tile)
            with mock.patch.object(triton_attention, "launch_settings", settings):
                try:
                    taken = f"{1e3 * seconds_of(work, arguments.device):.3f} ms"
                except Exception as error:  # too large for the card's shared memory, or for Triton
                    taken = f"no: {type(error).__name__}"
            remark = "  (as it is)" if tile == usual else ""
            print(f"{length} {kernel} M, N, warps, stages {tile}: {taken}{remark}", flush=True)


def _settings(given: Callable[..., Any], kernel: str, tile: tuple[int, ...], name: str, *sizes: int) -> Any:
    return tile if name == kernel else given(name, *sizes)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a batch")
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--head_dim", type=int, default=64)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tune", action="store_true")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            "torch sees no GPU; with TRITON_INTERPRET=1, --device cpu --lengths 32 --tokens 32 tries the program out."
        )
    (tune if arguments.tune else compare)(arguments)


if __name__ == "__main__":
    main()
