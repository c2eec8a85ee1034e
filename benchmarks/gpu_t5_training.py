"""How fast does a T5 train on a GPU, and in how much memory: fivefold against transformers, plain and compiled.

python benchmarks/gpu_t5_training.py [--size base] [--lengths 512 1024 2048] [--tokens 16384] [--steps 20]
    [--peak_tflops N] [--output FILE] [--check]

Each measurement is a process of its own, so that compiled code and peak memory are its own, and the contenders take
turns. A step is forward, loss, backward, clipping at 1.0, fused AdamW and zero_grad under bfloat16 autocast, without
dropout; float32 weights. A batch has --tokens source tokens in rows of one length, and targets of 114 tokens for 512.

--check first compares every attention kernel with its formula in float64, and a whole T5 with itself on the CPU.

MFU is the FLOPs of the matrix products, forward and backward (see `step_flops`), over those that the card could do in
the time: its dense bfloat16 peak as the maker gives it, from a table here or from --peak_tflops.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from machine import processor
from t5_training import build
from torch import nn

from fivefold import T5Config, T5Model
from fivefold.nn.attention import attention
from fivefold.nn.relative_bias import RelativePositionBias
from fivefold.training.prediction import PEAK_TFLOPS

CONTENDERS = ("transformers", "transformers, compiled", "fivefold", "fivefold, compiled")
TINY = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "vocab_size": 512}


def config_of(size: str) -> T5Config:
    """T5 v1.1 of a size; "tiny" is for trying this program out."""
    return T5Config.get_config("small" if size == "tiny" else size, dropout_rate=0.0, **TINY if size == "tiny" else {})


def target_length(source_length: int) -> int:
    """Target tokens for a source length, in the proportion of T5's span corruption: 114 for 512."""
    return round(source_length * 114 / 512)


def step_flops(config: T5Config, batch: int, source: int, target: int) -> int:
    """FLOPs of a step's matrix products, a product and a sum counted as two; the backward pass has twice the forward's.

    Forward, for a source token: 2 (4 D I + F) and 4 S I a layer, the second for attention's two products, and 4 D I for
    its keys and values in each decoder layer. For a target token: 2 (6 D I + F) and 4 (T + S) I a layer, 2 D V in the
    output layer. D is d_model, I num_heads * d_kv, F the elements of the feed-forward matrices, S and T the lengths.
    Nothing is taken off for causality, as is the custom, and what is computed twice to save memory counts once.
    """
    inner, dim = config.num_heads * config.d_kv, config.d_model
    feed_forward = (3 if config.is_gated else 2) * dim * config.d_ff
    layers, decoder_layers = config.num_layers, config.num_decoder_layers
    assert decoder_layers is not None
    encoder = layers * (2 * (4 * dim * inner + feed_forward) + 4 * source * inner) + decoder_layers * 4 * dim * inner
    decoder = decoder_layers * (2 * (6 * dim * inner + feed_forward) + 4 * (target + source) * inner)
    return 3 * batch * (source * encoder + target * (decoder + 2 * dim * config.vocab_size))


def measure(contender: str, size: str, batch: int, length: int, steps: int, device: str, backend: str) -> None:
    """Train a few steps and print JSON: seconds of each, peak memory, the first loss."""
    library, _, compiled = contender.partition(", ")
    torch.manual_seed(0)
    config = config_of(size)
    model, loss_of = build(library, config)
    model.to(device).train()
    if compiled:
        model.compile(backend=backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(1)
    shapes = {"input_ids": (batch, length), "labels": (batch, target_length(length))}
    data = {n: torch.randint(3, config.vocab_size - 1, s, generator=generator).to(device) for n, s in shapes.items()}
    moments, losses = [], []
    for _ in range(steps + 4):  # the first three warm up, the fourth begins the clock
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(model, data, batch * target_length(length))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
        moments.append(_now(device))
    if device == "cuda":
        torch.cuda.synchronize()
        seconds = [one.elapsed_time(other) / 1e3 for one, other in pairwise(moments[3:])]
        peak = torch.cuda.max_memory_allocated()
    else:
        seconds = [other - one for one, other in pairwise(moments[3:])]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "first_loss": losses[0].item()}))


def _now(device: str) -> Any:
    """A moment, on a GPU in its own time: the program runs ahead of it and must not wait."""
    if device != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def table(arguments: argparse.Namespace) -> str:
    """Run everything and lay the results out."""
    config, device = config_of(arguments.size), arguments.device
    card = torch.cuda.get_device_name() if device == "cuda" else processor()
    peak = arguments.peak_tflops or next((tflops for name, tflops in PEAK_TFLOPS.items() if name in card), None)
    versions = {name: version(name) for name in ("fivefold", "torch", "transformers")}
    lines = [
        f"T5 v1.1 {arguments.size}, bfloat16 autocast, {arguments.tokens:,} source tokens a step; {arguments.rounds} "
        f"processes of {arguments.steps} steps each, taking turns. Median step, fastest to slowest in brackets.",
        "",
        f"{card}; Python {platform.python_version()}, {', '.join(' '.join(item) for item in versions.items())}. "
        f"Speed is against {CONTENDERS[1]}; MFU "
        + (f"is of {peak:g} TFLOP/s." if peak else "is left out: no peak is known here; give --peak_tflops."),
        "",
        "| source / target | batch | library | ms/step | tokens/s | MFU | peak memory | first loss | speed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for length in arguments.lengths:
        batch, target = max(1, arguments.tokens // length), target_length(length)
        runs: dict[str, list[Any]] = {contender: [] for contender in CONTENDERS}
        for _ in range(arguments.rounds):
            for contender in CONTENDERS:
                runs[contender].append(_in_a_process(contender, batch, length, arguments))
        compiled = _median(runs[CONTENDERS[1]])
        for contender in CONTENDERS:
            cells = [f"{length} / {target}", str(batch), contender]
            failed = [run for run in runs[contender] if isinstance(run, str)]
            if failed:
                lines.append(f"| {' | '.join(cells)} | {failed[0]} | | | | | |")
                continue
            seconds, median = [s for run in runs[contender] for s in run["seconds"]], _median(runs[contender])
            assert median is not None
            flops = step_flops(config, batch, length, target)
            cells += [
                f"{1e3 * median:.1f} ({1e3 * min(seconds):.1f} .. {1e3 * max(seconds):.1f})",
                f"{batch * (length + target) / median:,.0f}",
                f"{flops / median / peak / 1e12:.1%}" if peak else "",
                f"{statistics.median(run['peak_bytes'] for run in runs[contender]) / 2**30:.2f} GiB",
                f"{runs[contender][0]['first_loss']:.3f}",
                f"{compiled / median:.2f}x" if compiled else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _in_a_process(contender: str, batch: int, length: int, arguments: argparse.Namespace) -> Any:
    """What `measure` prints, or in a few words why it does not."""
    words = [str(getattr(arguments, name)) for name in ("size", "steps", "device", "backend")]
    command = [sys.executable, __file__, "--measure", contender, words[0], str(batch), str(length), *words[1:]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
    return "out of memory" if "OutOfMemoryError" in done.stderr else f"failed: {last[:100].replace('|', '/')}"


def _median(runs: list[Any]) -> float | None:
    seconds = [second for run in runs if not isinstance(run, str) for second in run["seconds"]]
    return statistics.median(seconds) if seconds else None


def check(device: str, backend: str) -> list[str]:
    """Compare every kernel with the formula and a T5 with itself on the CPU, print it, and return what is off."""
    wrong = []
    for dtype in (torch.float32, torch.bfloat16):
        for kernel in ("auto", "sdpa", "tiled", "flash", "memory_efficient", "triton"):
            if kernel == "triton" and device == "cpu":
                continue
            errors = [_kernel_error(kernel, seed, dtype, device) for seed in range(20)]
            # A few roundings: of the weights, of the score gradients, of the results; sums in float32 in another order.
            wrong += _say(f"attention, {kernel}, {dtype}", max(errors), 3 * torch.finfo(dtype).eps + 1e-5)
    config = T5Config.get_config("small", dropout_rate=0.0, **TINY | {"d_kv": 64, "num_layers": 2})
    torch.manual_seed(0)
    reference = T5Model(config)
    generator = torch.Generator().manual_seed(1)
    shapes = {"input_ids": (4, 300), "labels": (4, 70)}
    data = {name: torch.randint(3, 500, shape, generator=generator) for name, shape in shapes.items()}
    data["attention_mask"] = (torch.arange(300) < torch.tensor([[300], [299], [40], [1]])).long()
    expected = _loss_and_gradients(reference.double(), data)
    for name, compiled in (("plain", False), ("compiled", True)):
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.05)):
            model = T5Model(config)
            model.load_state_dict(reference.state_dict())
            if compiled:
                model.compile(backend=backend)
            on_device = {key: tensor.to(device) for key, tensor in data.items()}
            with torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16):
                got = _loss_and_gradients(model.to(device), on_device)
            errors = [_distance(ours, theirs) for ours, theirs in zip(got, expected, strict=True)]
            wrong += _say(f"T5, {name}, {dtype}", max(errors), tolerance)
    return wrong


def _kernel_error(kernel: Any, seed: int, dtype: torch.dtype, device: str) -> float:
    """The largest relative error of a kernel's result and gradients in a random case with T5's bias."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options: Any) -> Any:
        return options[int(torch.randint(len(options), (), generator=g))]

    batch, heads, dim = pick(1, 3), 4, pick(16, 64, 80, 128)
    query_len, key_len, first_query = pick(1, 100, 513), pick(64, 200, 700), pick(0, 150)
    masks: dict[str, Any] = {"is_causal": pick(True, False), "first_query": first_query}
    if pick(True, False):
        masks["key_mask"] = torch.rand(batch, key_len, generator=g) < 0.7
    if pick(True, False):
        masks["query_segments"] = torch.randint(3, (batch, query_len), generator=g)
        masks["key_segments"] = torch.randint(3, (batch, key_len), generator=g)
    shapes = [(batch, n, heads, dim) for n in (query_len, key_len, key_len)]
    inputs = [torch.randn(shape, generator=g).transpose(1, 2).to(dtype) for shape in shapes]
    table = RelativePositionBias(32, heads, 128, is_bidirectional=not masks["is_causal"])
    nn.init.normal_(table.weight, generator=g)
    grad = torch.randn(batch, heads, query_len, dim, generator=g).to(dtype)

    exact = [x.double().requires_grad_() for x in (*inputs, table.weight.detach())]
    wide = RelativePositionBias(32, heads, 128, is_bidirectional=table.is_bidirectional).double()
    matrix = torch.func.functional_call(wide, {"weight": exact[3]}, (query_len, key_len, first_query))
    truth = _formula(*exact[:3], matrix, dim**-0.5, **masks)
    truths = (truth, *torch.autograd.grad(truth, exact, grad.double()))

    table = table.to(device)
    leaves = [*(x.to(device).requires_grad_() for x in inputs), table.weight]
    takes_blocks = kernel in ("auto", "triton", "flash", "memory_efficient")
    bias = table.by_distance() if takes_blocks else table(query_len, key_len, first_query)
    on_device = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in masks.items()}
    out = attention(*leaves[:3], bias=bias, scale=dim**-0.5, kernel=kernel, **on_device)
    results = (out, *torch.autograd.grad(out, leaves, grad.to(device)))
    return max(_distance(got, wanted, grad.norm().item()) for got, wanted in zip(results, truths, strict=True))


def _formula(q: Any, k: Any, v: Any, bias: Any, scale: float, is_causal: bool, first_query: int, **masks: Any) -> Any:
    """softmax(scale * q k^T + bias) v with the whole matrix of scores; zeros for a query that sees no key."""
    visible = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
    if is_causal:
        visible &= torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + first_query
    if "key_mask" in masks:
        visible &= masks["key_mask"][:, None, None]
    if "query_segments" in masks:
        visible &= (masks["query_segments"][:, :, None] == masks["key_segments"][:, None])[:, None]
    return ((scale * q @ k.mT + bias).masked_fill(~visible, -1e30).softmax(-1) * visible) @ v


def _loss_and_gradients(model: nn.Module, data: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    loss = model(**data).loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()))]


def _distance(got: torch.Tensor, wanted: torch.Tensor, least: float = 0.0) -> float:
    """Relative to what is wanted, or to `least` where that is larger."""
    got, wanted = (x.detach().cpu().double() for x in (got, wanted))
    return ((got - wanted).norm() / max(wanted.norm().item(), least, 1e-12)).item()


def _say(what: str, error: float, tolerance: float) -> list[str]:
    is_right = error <= tolerance  # not the other way round: NaN is wrong
    print(f"{'ok   ' if is_right else 'WRONG'} {what}: relative error {error:.1e}, at most {tolerance:.1e}", flush=True)
    return [] if is_right else [what]


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="base", help="tiny, small, base, large, xl or xxl")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048], help="source tokens of a row")
    parser.add_argument("--tokens", type=int, default=16384, help="source tokens of a batch")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backend", default="inductor", help="of torch.compile")
    parser.add_argument("--peak_tflops", type=float, help="the card's dense bfloat16 peak")
    parser.add_argument("--check", action="store_true", help="check what is computed, too")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=7, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        contender, size, batch, length, steps, device, backend = arguments.measure
        measure(contender, size, int(batch), int(length), int(steps), device, backend)
        return
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU; --device cpu --size tiny --lengths 32 --tokens 64 tries the program out.")
    if arguments.check and (wrong := check(arguments.device, arguments.backend)):
        sys.exit(f"{len(wrong)} checks failed: {'; '.join(wrong)}.")
    text = table(arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
