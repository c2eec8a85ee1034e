"""What does training at low rank cost: memory, time of a step and speed of generation, against the dense model.

python benchmarks/lowrank_cost.py [--models llama_60m ...] [--rounds 3] [--steps 1] [--threads 2] [--output FILE]

Dense and factored models take turns, each measurement in a process of its own. A step is forward and backward on 8 x
256 random tokens (T5: inputs, with the targets that span corruption gives them; no dropout), clipping at 1.0 and the
optimizer. The optimizers of a factored model make their steps one after the other on the same gradients, so that the
noise of the backward pass, which is the same for all, does not hide what differs. Two things are computed from what is
measured: the paper's step of 512 x 256 tokens, as 64 times forward and backward and once the rest, and LORO's average
step over a cycle of 500, from lazy and exact ones. Bytes are those of weights, gradients and optimizer state after a
step; what a step itself needs for a while is not among them. The four models take about twelve minutes and 9 GB.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import measured_on

BATCH, LENGTH, PAPER_BATCH, CYCLE = 8, 256, 512, 500
MICRO_STEPS = PAPER_BATCH // BATCH
RANKS = {"llama_60m": 128, "llama_130m": 256, "t5_small_normal": 128, "t5_base_normal": 256}
OTHERS_RANK = 32  # of presets that the papers do not have, for a quick look
OPTIMIZERS = {"dense": ["adamw"], "factored": ["adamw", "loro_adamw", "loro_muon", "spectron"]}
PAIRS = 8  # of each shape in the comparison of stacks with a loop; all of them would take minutes
PROMPT, NEW_TOKENS, GENERATION_BATCHES = 32, 64, (1, 8)


def build(preset: str, form: str) -> Any:
    """A fresh model with the preset's own vocabulary."""
    from fivefold.lowrank.settings import LowRankSettings
    from fivefold.models.build import build_model
    from fivefold.models.settings import ModelSettings

    rank = RANKS.get(preset, OTHERS_RANK)
    low_rank = LowRankSettings("all", loro_attn_rank=rank, loro_mlp_rank=rank) if form == "factored" else None
    shape = {"model_type": "llama"} if preset.startswith("llama") else {"model_type": "t5", "dropout_rate": 0.0}
    settings = ModelSettings(model_config=preset, **shape)  # type: ignore[arg-type]
    return build_model(settings, low_rank or LowRankSettings(), None, seed=0, default_init="dense")[0]


def forward_and_backward(model: Any, dtype: str) -> Callable[[], None]:
    """What the training loop does with one micro-batch."""
    import torch

    from fivefold.data.spans import raw_lengths
    from fivefold.objectives.causal import CausalObjective
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.objectives.settings import LossSettings
    from fivefold.t5.model import T5Model

    tokens = torch.randint(3, model.config.vocab_size, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    if isinstance(model, T5Model):
        objective = Seq2SeqObjective(LossSettings())
        _, target_length = raw_lengths(LENGTH, noise_density=0.15, mean_span_length=3.0)
        batch = {"input_ids": tokens, "labels": tokens[:, :target_length]}
    else:
        objective = CausalObjective(LossSettings())
        batch = {"input_ids": tokens, "labels": tokens}

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            terms = objective(model, batch)
        assert terms.loss_sum.isfinite(), "the optimizers have broken the model, and their times mean nothing"
        (terms.loss_sum / objective.count(batch)).backward()

    return run


def measure(preset: str, form: str, dtype: str, threads: int, steps: int) -> None:
    """Print JSON: sizes, seconds of everything, tokens a second."""
    import torch

    from fivefold.lowrank.settings import LoroSettings
    from fivefold.training.optimizers import build_optimizer
    from fivefold.training.settings import OptimizerSettings

    torch.set_num_threads(threads)
    model = build(preset, form).train()
    # The first step makes the state, then come the lazy ones, which do not ask how long the cycle is, and an exact one.
    loro = LoroSettings(loro_freq=steps + 2, loro_refresh="all", loro_refresh_freq=steps + 2)
    optimizers = {
        name: build_optimizer(model, OptimizerSettings(optimizer=name), loro if name == "loro_adamw" else None)
        for name in OPTIMIZERS[form]
    }
    run = forward_and_backward(model, dtype)
    times: dict[str, list[float]] = {name: [] for name in ("micro", "clip", *optimizers)}
    for _ in range(steps + 1):
        model.zero_grad(set_to_none=True)
        times["micro"].append(seconds(run))
        times["clip"].append(seconds(partial(torch.nn.utils.clip_grad_norm_, model.parameters(), 1.0)))
        for name, optimizer in optimizers.items():
            times[name].append(seconds(optimizer.step))
    times = {name: values[1:] for name, values in times.items()}
    result: dict[str, Any] = {"parameters": model.num_parameters(), "seconds": times}
    result["bytes"] = {name: training_bytes(model, optimizer) for name, optimizer in optimizers.items()}
    if form == "factored":
        times["exact"] = [seconds(optimizers["loro_adamw"].step)]
        groups = optimizers["loro_muon"].param_groups
        result["algebra"] = stacks_and_loop(
            [param for group in groups if group["factors"] for param in group["params"]]
        )
    model.eval()
    result["tokens_per_second"] = {str(batch): generation_speed(model, batch) for batch in GENERATION_BATCHES}
    print(json.dumps(result))


def training_bytes(model: Any, optimizer: Any) -> int:
    """Weights, gradients and optimizer state, read off the tensors."""
    import torch

    state = (value for values in optimizer.state.values() for value in values.values())
    remembered = sum(value.nbytes for value in state if torch.is_tensor(value))
    return remembered + sum(param.nbytes + param.grad.nbytes for param in model.parameters())


def stacks_and_loop(params: list[Any]) -> dict[str, list[float]]:
    """Seconds of LORO's exact step and of loro_muon's: pairs of one shape together, then the same pairs one by one."""
    import torch

    from fivefold.lowrank.manifold_muon import manifold_muon_step
    from fivefold.lowrank.stacks import stacks
    from fivefold.lowrank.tangent import Factors, decompose
    from fivefold.lowrank.update import exact_step

    def parts(size: int) -> list[tuple[Factors, Factors]]:
        every = [(*stack.factors(), *stack.gradients()) for stack in stacks(params)]
        split = (zip(*(tensor[:PAIRS].split(size) for tensor in stack), strict=True) for stack in every)
        return [(Factors(*part[:2]), Factors(*part[2:])) for stack in split for part in stack]

    def exact(old: Factors, gradient: Factors) -> None:
        exact_step(decompose(old), gradient, 1e-3)

    def muon(old: Factors, gradient: Factors) -> None:
        manifold_muon_step(old, gradient, gradient, 1e-3)

    def make_steps(step: Callable[..., Any], pairs: list[tuple[Factors, Factors]]) -> None:
        for old, gradient in pairs:
            step(old, gradient)

    with torch.no_grad():
        sizes = (parts(PAIRS), parts(1))
        return {
            name: [seconds(partial(make_steps, step, pairs)) for pairs in sizes]
            for name, step in (("exact_step", exact), ("manifold_muon_step", muon))
        }


def generation_speed(model: Any, batch_size: int) -> float:
    """New tokens a second: greedy, cached, in the weights' float32, as `fivefold generate` does it."""
    import torch

    prompt = torch.randint(3, model.config.vocab_size, (batch_size, PROMPT), generator=torch.Generator().manual_seed(2))

    def generate(num_tokens: int) -> None:
        how = {"do_sample": False, "use_cache": True, "pad_token_id": 0}
        lengths = {"min_new_tokens": num_tokens, "max_new_tokens": num_tokens}
        tokens = model.generate(input_ids=prompt, attention_mask=torch.ones_like(prompt), **how, **lengths)
        assert tokens.shape[1] == num_tokens + (1 if model.config.is_encoder_decoder else PROMPT)

    generate(2)
    return batch_size * NEW_TOKENS / seconds(partial(generate, NEW_TOKENS))


def seconds(run: Callable[[], object]) -> float:
    """How long a call takes."""
    start = perf_counter()
    run()
    return perf_counter() - start


class Measured:
    """All runs of a model in one form."""

    def __init__(self, runs: list[dict]) -> None:
        self.runs = runs
        self.parameters: int = runs[0]["parameters"]
        self.bytes: dict[str, int] = runs[0]["bytes"]

    def samples(self, name: str) -> list[float]:
        """Seconds of "micro" (forward and backward), "clip", an optimizer's step, or LORO's "exact" one."""
        return [second for run in self.runs for second in run["seconds"][name]]

    def median(self, name: str) -> float:
        """Of the samples; for loro_adamw the average over a cycle of lazy steps and an exact one."""
        middle = statistics.median(self.samples(name))
        return middle + (self.median("exact") - middle) / CYCLE if name == "loro_adamw" else middle

    def step(self, optimizer: str, micro_steps: int = 1) -> float:
        """Seconds of a whole step, from the medians of its parts."""
        return micro_steps * self.median("micro") + self.median("clip") + self.median(optimizer)

    def share(self, optimizer: str, micro_steps: int) -> float:
        """The optimizer's part of a step."""
        return self.median(optimizer) / self.step(optimizer, micro_steps)

    def speeds(self, batch_size: int) -> list[float]:
        """Generated tokens a second."""
        return [run["tokens_per_second"][str(batch_size)] for run in self.runs]


def tables(results: dict[str, dict[str, Measured]]) -> list[str]:
    """Markdown, four tables over all models."""
    size = f"{BATCH} x {LENGTH}"
    large = f"{PAPER_BATCH} x {LENGTH}"
    step_rows = [
        f"| model | method | parameters | weights, gradients, optimizer state | ratio | s/step, {size} | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    share_rows = [
        f"| model | method | optimizer, ms | of a step, {size} | of a step, {large} | "
        f"step, {large}, against W = BA with AdamW | against dense |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    algebra_rows = [
        f"| model | at most {PAIRS} pairs of a shape | stacked, ms | one by one, ms | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    generation_rows = [
        "| model | batch | dense, tokens/s | factored, tokens/s | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    for preset, forms in results.items():
        dense, factored = forms["dense"], forms["factored"]
        for form, name in [(form, name) for form, names in OPTIMIZERS.items() for name in names]:
            runs = forms[form]
            method = name if name != "adamw" else "dense, AdamW" if form == "dense" else "W = BA, AdamW"
            parts = zip(*map(runs.samples, ("micro", "clip", name)), strict=True)
            step_rows.append(
                f"| {preset} | {method} | {runs.parameters / 1e6:.1f}M | {runs.bytes[name] / 2**20:,.0f} MiB | "
                f"**{runs.bytes[name] / dense.bytes['adamw']:.2f}x** | {runs.step(name):.2f} "
                f"({_range(map(sum, parts))}) | **{runs.step(name) / dense.step('adamw'):.2f}x** |"
            )
            exact = f"; exact {_milliseconds(runs.samples('exact'))}" if name == "loro_adamw" else ""
            shares = " | ".join(f"{100 * runs.share(name, micro):.2f}%" for micro in (1, MICRO_STEPS))
            against = (runs.step(name, MICRO_STEPS) / other.step("adamw", MICRO_STEPS) for other in (factored, dense))
            share_rows.append(
                f"| {preset} | {method} | {_milliseconds(runs.samples(name))}{exact} | {shares} | "
                + " | ".join(f"{ratio:.3f}x" for ratio in against)
                + " |"
            )
        for step in factored.runs[0]["algebra"]:
            stacked, single = zip(*(run["algebra"][step] for run in factored.runs), strict=True)
            ratio = statistics.median(single) / statistics.median(stacked)
            algebra_rows.append(
                f"| {preset} | {step} | {_milliseconds(stacked)} | {_milliseconds(single)} | **{ratio:.2f}x** |"
            )
        for batch_size in GENERATION_BATCHES:
            speeds = [form.speeds(batch_size) for form in (dense, factored)]
            middle = [statistics.median(values) for values in speeds]
            cells = (f"{value:,.0f} ({_range(values, 0)})" for value, values in zip(middle, speeds, strict=True))
            generation_rows.append(
                f"| {preset} | {batch_size} | {' | '.join(cells)} | **{middle[1] / middle[0]:.2f}x** |"
            )
    return ["\n".join(rows) for rows in (step_rows, share_rows, algebra_rows, generation_rows)]


def _milliseconds(values: Any) -> str:
    scaled = [1000 * value for value in values]
    return f"{statistics.median(scaled):,.0f} ({_range(scaled, 0)})"


def _range(values: Any, digits: int = 2) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:,.{digits}f} .. {ordered[-1]:,.{digits}f}"


def report(arguments: argparse.Namespace) -> str:
    """Run everything and lay the results out."""
    runs: dict[tuple[str, str], list[dict]] = {}
    for preset in arguments.models:
        for round_number in range(1, arguments.rounds + 1):
            for form in OPTIMIZERS:
                print(f"{preset}, {form}, round {round_number} of {arguments.rounds}", file=sys.stderr, flush=True)
                words = ["--measure", preset, form, "--dtype", arguments.dtype]
                words += ["--threads", str(arguments.threads), "--steps", str(arguments.steps)]
                done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE)
                runs.setdefault((preset, form), []).append(json.loads(done.stdout.splitlines()[-1]))
    results = {preset: {form: Measured(runs[preset, form]) for form in OPTIMIZERS} for preset in arguments.models}
    ranks = ", ".join(f"{preset} {RANKS.get(preset, OTHERS_RANK)}" for preset in arguments.models)
    training, shares, algebra, generation = tables(results)
    parts = [
        f"Ranks: {ranks}. Products in {arguments.dtype}, weights and state in float32, {arguments.threads} threads. "
        f"Processes for the dense and the factored model, in turns: {arguments.rounds} each; measured steps in each: "
        f"{arguments.steps}. Medians, lowest to highest in brackets.",
        measured_on("transformers"),
        f"Training. loro_adamw is the average of {CYCLE - 1} lazy steps and an exact one; its range is the lazy ones'.",
        training,
        f"The optimizer's share. A step of {PAPER_BATCH} x {LENGTH} tokens is computed: {MICRO_STEPS} times the median "
        "forward and backward, once clipping and the optimizer.",
        shares,
        "The linear algebra of a step, factor pairs of one shape together and one by one.",
        algebra,
        f"Generation: greedy, {NEW_TOKENS} new tokens behind {PROMPT}, with a cache, in float32.",
        generation,
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=list(RANKS), help="presets, such as llama_60m or t5_small_normal"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, arguments.dtype, arguments.threads, arguments.steps)
        return
    text = report(arguments)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
