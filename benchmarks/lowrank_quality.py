"""Which way of training at low rank reaches the lowest held-out loss: every method by the same command, tuned alike.

python benchmarks/lowrank_quality.py [--model llama t5] [--work FOLDER] [--seeds 3] [--jobs 2] [--methods NAME ...]

Each run is `fivefold pretrain` on the plays of the catalogue's en_plays with a vocabulary of 1,024: a LLaMA of 400
steps or a T5 of 800, both of about 1.1M parameters, or 58% of them where the matrices are factored at rank 36; float32,
cosine with a tenth of warm-up, clipping at 1, one thread. Embeddings, norms and output layer get AdamW at one rate
everywhere, which suits dense Adam, too. Each method's own learning rate is the best at seed 0 of three that double, of
further ones as long as the best lies at an end, and of one between the best and its better neighbour; that rate is then
run with the other seeds. FOLDER/results.jsonl keeps the runs, so that the script goes on where it was
stopped and --report prints and draws what is there.
"""

import argparse
import json
import math
import shlex
import shutil
import statistics
from functools import partial
from pathlib import Path

from plays import Runs, perplexity_interval, prepare_plays, train

RANK, CYCLE = 36, 50
# A T5 spends its first 400 steps on how often tokens occur; only then methods differ (docs/log.md).
STEPS = {"llama": 400, "t5": 800}
SHAPES = {
    "llama": {
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
    },
    "t5": {
        "model_type": "t5",
        "vocab_size": 1024,
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 352,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-silu",
        "tie_word_embeddings": False,
        "dropout_rate": 0.0,
        # T5's fresh weights are large: with 1 every method ends higher, and they end closer together (docs/log.md).
        "initializer_factor": 0.3,
    },
}
# T5's inputs and targets together make as many tokens as LLaMA's windows.
INPUT_LENGTH = {"llama": 64, "t5": 96}
# Of embeddings, output layer and norms, for every method; T5's embeddings start large.
DENSE_LR = {"llama": 1e-2, "t5": 3e-2}

COMMON = ["--scheduler", "cosine", "--grad_clipping", "1.0"]
FACTORED = ["--loro_scope", "all", "--loro_attn_rank", str(RANK), "--loro_mlp_rank", str(RANK)]
SPECTRAL = [*FACTORED, "--loro_init", "spectral"]
LORO = [*SPECTRAL, "--optimizer", "loro_adamw", "--loro_freq", str(CYCLE)]
REFRESH = ["--loro_refresh", "all", "--loro_refresh_freq", str(CYCLE)]
# As in the authors' scripts: one rate for everything, r/d on lazy steps, restarts, xavier factors, no clipping.
PUBLISHED = shlex.split(
    f"{shlex.join(FACTORED)} --optimizer loro_adamw --loro_init xavier --loro_freq {CYCLE} --loro_lr_scaler -1"
    f" {shlex.join(REFRESH)} --grad_clipping 0 --scheduler cosine_restart"
    f" --cosine_restart_freq {CYCLE} --cosine_restart_warmup 5"
)
ADAM_RATES, MUON_RATES = [1e-3, 2e-3, 4e-3], [2.5e-3, 5e-3, 1e-2]
METHODS: dict[str, tuple[list[str], list[float]]] = {
    "dense Adam": ([*COMMON, "--optimizer", "adamw"], ADAM_RATES),
    "dense Adam, scaled": ([*COMMON, "--optimizer", "adamw_scaled"], [5e-3, 1e-2, 2e-2]),
    "dense Muon": ([*COMMON, "--optimizer", "muon"], MUON_RATES),
    "W = BA, Adam": ([*COMMON, *SPECTRAL, "--optimizer", "adamw"], ADAM_RATES),
    "reset only": ([*COMMON, *LORO, "--loro_type", "eucl", *REFRESH], ADAM_RATES),
    "rebalance only": ([*COMMON, *LORO, "--loro_type", "rebalance", "--loro_momentum", "factor"], ADAM_RATES),
    "exact only": ([*COMMON, *LORO, "--loro_momentum", "factor"], ADAM_RATES),
    "exact, tangent": ([*COMMON, *LORO, "--loro_momentum", "tangent"], ADAM_RATES),
    "LORO (factor)": ([*COMMON, *LORO, *REFRESH], ADAM_RATES),
    "LORO (tangent)": ([*COMMON, *LORO, *REFRESH, "--loro_momentum", "tangent"], ADAM_RATES),
    "LORO as published": (PUBLISHED, [5e-3, 1e-2, 2e-2]),
    "Spectron": ([*COMMON, *SPECTRAL, "--optimizer", "spectron"], [1.25e-2, 2.5e-2, 5e-2]),
    "loro_muon": ([*COMMON, *SPECTRAL, "--optimizer", "loro_muon"], MUON_RATES),
}


def prepare(work: Path, model: str) -> None:
    """Tokenizer, tokens and the model's shape."""
    work.mkdir(parents=True, exist_ok=True)
    (work / f"{model}.json").write_text(json.dumps(SHAPES[model]))
    prepare_plays(work, SHAPES[model]["vocab_size"])


def run_method(work: Path, model: str, method: str, lr: float, seed: int) -> dict:
    """One run; its learning curve on held-out text."""
    run = work / "runs" / f"{model}-{method}-{lr:g}-{seed}".replace(" ", "_").replace("=", "").replace(",", "")
    steps = STEPS[model]
    settings = {
        "model_type": model,
        "model_config": work / f"{model}.json",
        "data": work / "tokens",
        "input_length": INPUT_LENGTH[model],
        "batch_size": 32,
        "num_training_steps": steps,
        "warmup_steps": steps // 10,
        "eval_every": steps // 8,
        "eval_samples": 512,
        "save_every": 0,
        "dtype": "float32",
        "lr": lr,
        "seed": seed,
    }
    if method == "LORO as published":
        settings["lr_adjust_steps"] = -(steps // 10)  # restarts begin where warm-up ends
    elif method != "dense Adam, scaled":
        settings["dense_lr"] = DENSE_LR[model]
    flags, _ = METHODS[method]
    curve, seconds = train(run, flags, settings)
    shutil.rmtree(run / "final")
    return {"loss": curve[str(steps)], "curve": curve, "seconds": seconds}


class Results:
    """Finished runs, on disk and in memory."""

    def __init__(self, file: Path) -> None:
        self.runs: Runs = Runs(file, ("model", "method", "lr", "seed"))

    def fill(self, work: Path, jobs: int, wanted: list[tuple[str, str, float, int]]) -> None:
        """Make the runs that are not there yet."""
        self.runs.fill(partial(run_method, work), wanted, jobs)

    def best_rate(self, model: str, method: str) -> float | None:
        """The rate with the lowest loss at seed 0."""
        losses = {key[2]: run["loss"] for key, run in self.runs.items() if key[:2] == (model, method) and key[3] == 0}
        return min(losses, key=losses.__getitem__) if losses else None

    def doubling(self, model: str, method: str) -> list[float]:
        """Rates that double: those to begin with, and further ones as long as the best of them lies at an end."""
        rates = METHODS[method][1]
        while all((model, method, rate, 0) in self.runs for rate in rates):
            best = min(rates, key=lambda rate: self.runs[model, method, rate, 0]["loss"])
            if best == rates[-1]:
                rates = [*rates, 2 * best]
            elif best == rates[0]:
                rates = [best / 2, *rates]
            else:
                break
        return rates

    def between(self, model: str, method: str) -> float:
        """A rate between the best one and its better neighbour."""
        rates = self.doubling(model, method)
        losses = {rate: self.runs[model, method, rate, 0]["loss"] for rate in rates}
        best = min(losses, key=losses.__getitem__)
        place = rates.index(best)
        neighbour = min((rates[place - 1], rates[place + 1]), key=losses.__getitem__)
        return float(f"{math.sqrt(best * neighbour):.2g}")

    def at_best(self, model: str, method: str) -> list[dict]:
        """All seeds at the best rate."""
        rate = self.best_rate(model, method)
        return [run for key, run in sorted(self.runs.items()) if key[:3] == (model, method, rate)]


def table(results: Results, model: str) -> str:
    """Mean and spread of the losses, and how far loro_muon's perplexity lies from each method's."""
    rows = [
        "| method | lr | seeds | held-out loss (lowest .. highest) | perplexity | loro_muon against it (95%) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    ours = {run["seed"]: run["loss"] for run in results.at_best(model, "loro_muon")}
    for method in METHODS:
        runs = results.at_best(model, method)
        if not runs:
            continue
        losses = [run["loss"] for run in runs]
        gaps = [ours[run["seed"]] - run["loss"] for run in runs if run["seed"] in ours]
        spread = f"({min(losses):.3f} .. {max(losses):.3f})"
        against = "" if method == "loro_muon" else perplexity_interval(gaps)
        rows.append(
            f"| {method} | {runs[0]['lr']:g} | {len(runs)} | {statistics.mean(losses):.3f} {spread} "
            f"| {math.exp(statistics.mean(losses)):.1f} | {against} |"
        )
    return "\n".join(rows)


def draw(results: Results, models: list[str], file: Path) -> None:
    """Held-out loss over the steps, mean of the seeds, a panel a model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(models), figsize=(6.5 * len(models), 4.5), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for index, method in enumerate(METHODS):
            runs = results.at_best(model, method)
            if not runs:
                continue
            steps = [int(step) for step in runs[0]["curve"] if int(step)]
            means = [statistics.mean(run["curve"][str(step)] for run in runs) for step in steps]
            colour = plt.get_cmap("tab20")(index)
            style = (
                {"linewidth": 2.5, "color": "black"} if method == "loro_muon" else {"linewidth": 1.2, "color": colour}
            )
            panel.plot(steps, means, label=method, linestyle="-" if index % 2 else "--", **style)
        panel.set(title=model, xlabel="steps", ylabel="held-out loss, nats a token")
        panel.set_ylim(top=min(panel.get_ylim()[1], 5.5))
        panel.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Tune, repeat, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, nargs="+", default=list(SHAPES))
    parser.add_argument("--work", type=Path, default=Path("lowrank_quality"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--report", action="store_true", help="only print and draw what is there")
    words = parser.parse_args()
    results = Results(words.work / "results.jsonl")
    for model in words.model:
        if not words.report:
            prepare(words.work, model)
            while doubling := [
                run
                for method in words.methods
                for rate in results.doubling(model, method)
                if (run := (model, method, rate, 0)) not in results.runs
            ]:
                results.fill(words.work, words.jobs, doubling)
            refined = [(model, method, results.between(model, method), 0) for method in words.methods]
            results.fill(words.work, words.jobs, refined)
            rates = {method: results.best_rate(model, method) for method in words.methods}
            repeats = [
                (model, method, lr, seed) for seed in range(1, words.seeds) for method, lr in rates.items() if lr
            ]
            results.fill(words.work, words.jobs, repeats)
        print(f"\n{model}\n\n{table(results, model)}")
    draw(results, words.model, words.work / "lowrank_quality.png")


if __name__ == "__main__":
    main()
