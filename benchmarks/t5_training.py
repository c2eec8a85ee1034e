"""How fast does a T5 train, and in how much memory: fivefold's T5 against transformers' T5 on the same machine.

python benchmarks/t5_training.py [--size small] [--steps 5] [--rounds 3] [--threads 2] [--output FILE]

Each measurement is a process of its own, so that its peak memory, less what the imports take, is its own; the two
libraries take turns. A step is forward, loss, backward, clipping at 1.0, fused AdamW and zero_grad on 8 x 512 input and
114 target tokens, no dropout.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from machine import in_own_process, measured_on

if TYPE_CHECKING:
    from fivefold import T5Config

BATCH, SOURCE, TARGET = 8, 512, 114
TOKENS = BATCH * (SOURCE + TARGET)


def build(library: str, config: "T5Config"):
    """The model, and a function from it, a batch and the number of its targets to the mean loss."""
    import torch

    from fivefold import T5Model

    torch.manual_seed(0)
    if library == "fivefold":
        from fivefold.objectives.seq2seq import Seq2SeqObjective
        from fivefold.objectives.settings import LossSettings

        objective = Seq2SeqObjective(LossSettings(z_loss=0.0))
        return T5Model(config), lambda model, batch, count: objective(model, batch).loss_sum / count

    import transformers

    names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj", "dropout_rate")
    theirs = transformers.T5Config(**{name: getattr(config, name) for name in names}, decoder_start_token_id=0)
    theirs.scale_decoder_outputs = False
    model = transformers.T5ForConditionalGeneration(theirs)
    model.lm_head = torch.nn.Linear(config.d_model, config.vocab_size, bias=False)  # v1.1 has one of its own
    torch.nn.init.normal_(model.lm_head.weight, std=config.d_model**-0.5)
    return model, lambda model, batch, _: model(**batch).loss


def measure(library: str, dtype: str, size: str, steps: int, threads: int) -> None:
    """Train a few steps and print JSON: seconds of each step, peak memory, the first loss, parameters."""
    import torch
    import transformers.models.t5.modeling_t5  # noqa: F401 - both libraries' processes import the same

    from fivefold import T5Config
    from fivefold.objectives import seq2seq  # noqa: F401

    torch.set_num_threads(threads)
    imports_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model, loss_of = build(library, T5Config.get_config(size, dropout_rate=0.0))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    generator = torch.Generator().manual_seed(1)
    shape = {"input_ids": (BATCH, SOURCE), "labels": (BATCH, TARGET)}
    batch = {name: torch.randint(3, 32000, rows, generator=generator) for name, rows in shape.items()}
    seconds, losses = [], []
    for _ in range(steps + 2):  # the first two warm up
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
            loss = loss_of(model, batch, BATCH * TARGET)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(loss))
        seconds.append(time.perf_counter() - start)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imports_kib) * 1024
    parameters = sum(parameter.numel() for parameter in model.parameters())
    result = {"seconds": seconds[2:], "peak_bytes": peak, "first_loss": losses[0], "parameters": parameters}
    print(json.dumps(result))


def table(size: str, steps: int, rounds: int, threads: int) -> str:
    """Run everything and lay the results out."""
    results: dict[tuple[str, str], list[dict]] = {}
    for dtype in ("float32", "bfloat16"):
        for _ in range(rounds):
            for library in ("transformers", "fivefold"):
                words = ["--measure", library, dtype, "--size", size, "--steps", steps, "--threads", threads]
                results.setdefault((dtype, library), []).append(in_own_process(__file__, *words))
    (parameters,) = {run["parameters"] for runs in results.values() for run in runs}  # the same model on both sides
    lines = [
        f"T5 v1.1 {size}, {parameters:,} parameters, {BATCH} x {SOURCE}/{TARGET} tokens a step, {threads} threads; "
        f"{rounds} processes of {steps} steps each, taking turns. Median step, fastest to slowest in brackets.",
        "",
        measured_on("transformers"),
        "",
        "| dtype | library | s/step | tokens/s | peak memory | first loss |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for dtype in ("float32", "bfloat16"):
        medians, peaks = {}, {}
        for library in ("transformers", "fivefold"):
            runs = results[dtype, library]
            seconds = [second for run in runs for second in run["seconds"]]
            medians[library] = statistics.median(seconds)
            peaks[library] = statistics.median(run["peak_bytes"] for run in runs)
            lines.append(
                f"| {dtype} | {library} | {medians[library]:.2f} ({min(seconds):.2f} .. {max(seconds):.2f}) | "
                f"{TOKENS / medians[library]:,.0f} | {peaks[library] / 2**30:.2f} GiB | {runs[0]['first_loss']:.3f} |"
            )
        speed = medians["transformers"] / medians["fivefold"]
        memory = peaks["fivefold"] / peaks["transformers"]
        lines.append(f"| {dtype} | **ratio** | | **{speed:.2f}x** | **{memory:.2f}x** | |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure, arguments.size, arguments.steps, arguments.threads)
        return
    text = table(arguments.size, arguments.steps, arguments.rounds, arguments.threads)
    print(text)
    if arguments.output:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
