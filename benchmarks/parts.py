"""What each part of a T5 is worth: held-out loss after equal tokens and after equal time, and on longer inputs.

python benchmarks/parts.py [--work FOLDER] [--seeds 3] [--rates 7e-3 ...] [--rows NAME ...]    80 minutes of one core
python benchmarks/parts.py --time [--work FOLDER]      seconds a step, a minute on an idle machine
python benchmarks/parts.py --report [--work FOLDER]    tables and FOLDER/parts.png from what is there

Each run is `fivefold pretrain` on the plays of the catalogue's en_plays with a vocabulary of 512: a T5 v1.1 with 2 + 2
layers of width 128 (1.1M parameters), in which one part at a time is another; 800 steps of 16 x 32 tokens, Muon,
float32, cosine with a tenth of warm-up, clipping at 1, one thread. Feed-forward layers all have as many parameters:
those without a gate are 1.5 times as wide. All rows have one learning rate; further --rates are tried with the first
seed, and where one is better also with the others.

Steps are timed apart, all rows in turn in one process, since the training runs share the machine. Loss at equal time is
read off a row's curve where the fastest row ends, between measurements on a straight line; slower rows have not come
to the end of their cosine there. FOLDER/results.jsonl and FOLDER/time.json keep what was measured, so that the script
goes on where it was stopped.
"""

import argparse
import json
import math
import shutil
import statistics
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from time import perf_counter
from typing import Any

from plays import Runs, prepare_plays, train

VOCAB, LENGTH, BATCH, STEPS = 512, 32, 16, 800
SHAPE = {
    "model_type": "t5",
    "vocab_size": VOCAB,
    "d_model": 128,
    "d_kv": 32,
    "d_ff": 352,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "dropout_rate": 0.0,
    "initializer_factor": 0.3,  # T5's fresh weights are large; as in lowrank_quality.py
}
RATE = 7e-3
BASE = "T5 v1.1"
ROPE = {"position": "rope", "position_settings": {"max_seq_length": LENGTH}}
ALIBI, ADAPTIVE_ALIBI, START = {"position": "alibi"}, {"position": "adaptive_alibi"}, {"initializer_factor": 1.0}
SWIGLU, QK_NORM, GROUPED = {"feed_forward_proj": "gated-silu"}, {"qk_norm": True}, {"num_key_value_heads": 2}
AXES: dict[str, dict[str, dict[str, Any]]] = {
    "": {BASE: {}},  # relative_bias, rmsnorm, geglu
    "position": {
        "rope": ROPE,
        "alibi": ALIBI,
        "adaptive_alibi": ADAPTIVE_ALIBI,
        "none": {"position": "none"},
    },
    "norm": {"group_rmsnorm": {"norm": "group_rmsnorm"}, "layernorm": {"norm": "layernorm"}},
    "feed-forward": {
        "relu": {"feed_forward_proj": "relu", "d_ff": 528},
        "gelu": {"feed_forward_proj": "gelu", "d_ff": 528},
        "glu": {"feed_forward_proj": "gated-sigmoid"},
        "bilinear": {"feed_forward_proj": "gated-linear"},
        "reglu": {"feed_forward_proj": "gated-relu"},
        "swiglu": SWIGLU,
    },
    "attention": {"qk_norm": QK_NORM, "2 key heads for 4": GROUPED},
    "together": {
        "swiglu, qk_norm": SWIGLU | QK_NORM,
        "rope, swiglu, qk_norm": ROPE | SWIGLU | QK_NORM,
        "alibi, swiglu, qk_norm": ALIBI | SWIGLU | QK_NORM,
        "adaptive_alibi, swiglu, qk_norm": ADAPTIVE_ALIBI | SWIGLU | QK_NORM,
        "rope, swiglu, qk_norm, 2 key heads": ROPE | SWIGLU | QK_NORM | GROUPED,
    },
    # With small weights scores begin near 0, unless queries and keys are normalised: is that all that qk_norm does?
    "full-size start": {"T5 v1.1, start 1": START, "qk_norm, start 1": START | QK_NORM},
}
ROWS = {name: changes for rows in AXES.values() for name, changes in rows.items()}
# Kept to be tried on longer inputs: every way of telling positions.
EXTENSIBLE = (BASE, "rope", "alibi", "adaptive_alibi", "none")
STRETCHES = (1, 2, 4)


def run_row(work: Path, tokens: Path, row: str, lr: float, seed: int) -> dict[str, Any]:
    """Train one row; what its held-out loss was on the way."""
    shape = work / "shapes" / f"{_file_name(row)}.json"
    shape.parent.mkdir(exist_ok=True)
    shape.write_text(json.dumps(SHAPE | ROWS[row]))
    settings: dict[str, object] = {
        "model_config": shape,
        "data": tokens,
        "input_length": LENGTH,
        "batch_size": BATCH,
        "num_training_steps": STEPS,
        "warmup_steps": STEPS // 10,
        "eval_every": STEPS // 8,
        "eval_samples": 512,
        "save_every": 0,
        "dtype": "float32",
        "optimizer": "muon",
        "lr": lr,
        "dense_lr": 3e-2,
        "seed": seed,
    }
    run = _run_folder(work, row, lr, seed)
    curve, seconds = train(run, [], settings)
    loss = curve[str(STEPS)]
    result: dict[str, Any] = {"loss": loss, "curve": curve, "seconds": seconds}
    if row in EXTENSIBLE:
        result["longer"] = longer_inputs(run / "final", tokens, row)
    shutil.rmtree(run / "final")
    return result


def longer_inputs(model_folder: Path, tokens: Path, row: str) -> dict[str, dict[str, float | None]]:
    """Held-out loss by scheme and stretch on inputs that many times as long as in training; None where refused.

    Every input has as many hidden spans as in training, so that no sentinel and no place in the target is new.
    """
    import torch

    from fivefold.errors import ModelError
    from fivefold.t5.model import T5Model

    torch.set_num_threads(1)
    losses: dict[str, dict[str, float | None]] = {}
    for stretch in STRETCHES:
        for scheme, settings in extensions(row, stretch).items():
            model = T5Model.from_pretrained(model_folder).eval()
            if settings:
                config = model.config.__class__(**model.config.to_dict() | {"position_settings": settings})
                model = T5Model.from_pretrained(model_folder, config=config).eval()
            try:
                loss = held_out_loss(model, tokens, stretch)
            except ModelError:
                loss = None
            losses.setdefault(scheme, {})[str(stretch)] = loss
    return losses


def extensions(row: str, stretch: int) -> dict[str, dict[str, Any] | None]:
    """By name, the position_settings that a trained row is opened with for longer inputs; None for its own."""
    if row != "rope":
        return {"relative_bias" if row == BASE else row: None}
    by_factor = {"factor": float(stretch), "max_seq_length": LENGTH}
    return {
        "rope": None,
        "rope, limit lifted": {"max_seq_length": stretch * LENGTH},
        "rope, ntk": {"scaling": "ntk", "max_seq_length": LENGTH},
        "rope, linear": by_factor | {"scaling": "linear"} if stretch > 1 else None,
        "rope, yarn": by_factor | {"scaling": "yarn"} if stretch > 1 else None,
    }


def held_out_loss(model: Any, tokens: Path, stretch: int) -> float:
    """Mean over the target tokens of 512 samples, or of all the held-out text if it is less."""
    import torch

    from fivefold.data.loader import evaluation_batches
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.objectives.settings import LossSettings

    objective, source = Seq2SeqObjective(LossSettings()), validation_source(tokens, stretch)
    nll, count = 0.0, 0
    with torch.no_grad():
        for batch in evaluation_batches(source, min(512, source.samples_per_epoch), BATCH):
            nll += float(objective(model, batch).nll_sum)
            count += objective.count(batch)
    return nll / count


@cache
def validation_source(tokens: Path, stretch: int) -> Any:
    """Held-out samples `stretch` times as long as in training, with as many spans hidden."""
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.build import build_sources, open_tokenizer
    from fivefold.data.settings import DataSettings, ObjectiveSettings

    corpus, data = CorpusSettings(data=[str(tokens)]), DataSettings()
    objective = ObjectiveSettings(
        objective="span", input_length=stretch * LENGTH, noise_density=ObjectiveSettings().noise_density / stretch
    )
    return build_sources(corpus, data, objective, open_tokenizer(corpus, data), seed=0)[1]


def time_rows(work: Path, rounds: int) -> None:
    """Seconds of a step and bytes kept for the backward pass, every row in turn; into FOLDER/time.json."""
    import torch

    from fivefold.data.spans import raw_lengths
    from fivefold.objectives.seq2seq import Seq2SeqObjective
    from fivefold.objectives.settings import LossSettings
    from fivefold.t5.config import T5Config
    from fivefold.t5.model import T5Model
    from fivefold.training.optimizers import build_optimizer
    from fivefold.training.settings import OptimizerSettings

    torch.set_num_threads(1)
    objective = Seq2SeqObjective(LossSettings())
    _, target_length = raw_lengths(LENGTH, noise_density=0.15, mean_span_length=3.0)
    generator = torch.Generator().manual_seed(1)
    batch = {
        name: torch.randint(3, VOCAB, (BATCH, length), generator=generator)
        for name, length in (("input_ids", LENGTH), ("labels", target_length))
    }
    models = {row: T5Model(T5Config.from_dict(SHAPE | changes)) for row, changes in ROWS.items()}
    optimizers = {row: build_optimizer(model, OptimizerSettings("muon"), None) for row, model in models.items()}
    seconds: dict[str, list[float]] = {row: [] for row in models}
    kept: dict[str, int] = {}
    for _ in range(rounds + 2):  # the first two warm up
        for row, model in models.items():
            start = perf_counter()
            loss = objective(model, batch).loss_sum / objective.count(batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizers[row].step()
            optimizers[row].zero_grad(set_to_none=True)
            seconds[row].append(perf_counter() - start)
    for row, model in models.items():
        storages: dict[int, int] = {}
        kept[row] = 0

        def pack(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = objective(model, batch).loss_sum
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept[row] = sum(size for place, size in storages.items() if place not in weights)
        del loss
    result = {
        row: {
            "seconds": statistics.median(seconds[row][2:]),
            "kept_bytes": kept[row],
            "parameters": models[row].num_parameters(),
        }
        for row in models
    }
    (work / "time.json").write_text(json.dumps(result, indent=1))


class Results:
    """Finished runs and times, and what tables and picture say of them."""

    def __init__(self, work: Path) -> None:
        self.runs: Runs = Runs(work / "results.jsonl", ("row", "lr", "seed"))
        file = work / "time.json"
        self.times: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}

    def best_rate(self, row: str) -> float | None:
        """The rate with the lowest loss at seed 0."""
        losses = {lr: run["loss"] for (name, lr, seed), run in self.runs.items() if name == row and seed == 0}
        return min(losses, key=losses.__getitem__) if losses else None

    def at_best(self, row: str) -> dict[int, dict[str, Any]]:
        """The runs at the best rate, by seed."""
        rate = self.best_rate(row)
        return {seed: run for (name, lr, seed), run in sorted(self.runs.items()) if (name, lr) == (row, rate)}

    def gaps(self, row: str) -> list[float]:
        """How far a row's losses lie from those of the base, seed by seed."""
        base = self.at_best(BASE)
        return [run["loss"] - base[seed]["loss"] for seed, run in self.at_best(row).items() if seed in base]

    def smallest_difference(self) -> float:
        """Below which a mean difference of three seeds from the base may be noise: twice its error, over all rows."""
        every = [gaps for row in ROWS if row != BASE and len(gaps := self.gaps(row)) > 1]
        freedom = sum(len(gaps) - 1 for gaps in every)
        spread = math.sqrt(sum(statistics.variance(gaps) * (len(gaps) - 1) for gaps in every) / max(1, freedom))
        return 2.0 * spread / math.sqrt(max(map(len, every), default=1))

    def at_equal_time(self, row: str) -> float | None:
        """Mean loss after as many seconds as the fastest row needs for all its steps."""
        rows = [name for name in ROWS if self.at_best(name)]
        if not self.at_best(row) or not set(rows) <= set(self.times):
            return None
        budget_steps = STEPS * min(self.times[name]["seconds"] for name in rows) / self.times[row]["seconds"]
        return statistics.mean(_read(run["curve"], budget_steps) for run in self.at_best(row).values())


def _read(curve: dict[str, float], step: float) -> float:
    """A curve between its points, on a straight line."""
    after = min(int(point) for point in curve if int(point) >= step - 1e-9)
    before = max(int(point) for point in curve if int(point) <= step)
    share = (step - before) / (after - before) if after > before else 0.0
    return (1 - share) * curve[str(before)] + share * curve[str(after)]


def main_table(results: Results) -> str:
    """Loss after equal steps and equal time, seconds and memory."""
    lines = [
        "| | row | parameters | lr | loss at equal tokens (lowest .. highest) | against T5 v1.1 | step time | kept for "
        "the backward pass | loss at equal time |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    base_time = results.times.get(BASE)
    for axis, rows in AXES.items():
        for row in rows:
            runs, time = list(results.at_best(row).values()), results.times.get(row)
            words = [axis, row, f"{time['parameters']:,.0f}" if time else ""]
            if runs:
                losses, gap = [run["loss"] for run in runs], statistics.mean(results.gaps(row) or [math.nan])
                spread = f"({min(losses):.3f} .. {max(losses):.3f})"
                words += [f"{runs[0]['lr']:g}", f"{statistics.mean(losses):.3f} {spread}"]
                words += ["" if row == BASE else f"{gap:+.3f}"]
            else:
                words += ["", "", ""]
            if time and base_time:
                words += [f"{time['seconds'] / base_time['seconds']:.2f}x", f"{time['kept_bytes'] / 2**20:.1f} MiB"]
            else:
                words += ["", ""]
            equal = results.at_equal_time(row) if runs else None
            words.append("" if equal is None else f"{equal:.3f}")
            lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def longer_table(results: Results) -> str:
    """Loss on inputs longer than in training, mean of the seeds."""
    lines = [
        "| positions | " + " | ".join(f"{stretch} x {LENGTH}" for stretch in STRETCHES) + " |",
        "| --- | " + " | ".join("---" for _ in STRETCHES) + " |",
    ]
    for row in EXTENSIBLE:
        runs = list(results.at_best(row).values())
        for scheme in runs[0]["longer"] if runs else []:
            cells = []
            for stretch in map(str, STRETCHES):
                losses = [run["longer"][scheme][stretch] for run in runs]
                cells.append("refused" if None in losses else f"{statistics.mean(losses):.3f}")
            lines.append(f"| {scheme} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_lines(results: Results) -> Iterator[str]:
    """Loss at each rate, first seed."""
    for row in ROWS:
        losses = {lr: run["loss"] for (name, lr, seed), run in results.runs.items() if (name, seed) == (row, 0)}
        if len(losses) > 1:
            yield f"- {row}: " + ", ".join(f"{lr:g} {loss:.3f}" for lr, loss in losses.items())


def draw(results: Results, file: Path) -> None:
    """Each row's seeds and their mean, axis by axis, beside the base."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(axis, row) for axis, names in AXES.items() for row in names if results.at_best(row)]
    figure, (losses, curves) = plt.subplots(1, 2, figsize=(13, 5.5), width_ratios=(3, 2))
    axes = list(AXES)
    for place, (axis, row) in enumerate(rows):
        values = [run["loss"] for run in results.at_best(row).values()]
        colour = plt.get_cmap("tab10")(axes.index(axis))
        losses.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.6)
        losses.plot(statistics.mean(values), place, "|", color=colour, markersize=16, markeredgewidth=2.5)
    base = [run["loss"] for run in results.at_best(BASE).values()]
    losses.axvline(statistics.mean(base), color="grey", linewidth=0.8)
    noise = results.smallest_difference()
    losses.axvspan(statistics.mean(base) - noise, statistics.mean(base) + noise, color="grey", alpha=0.15)
    losses.set_yticks(range(len(rows)), [f"{axis}: {row}" if axis else row for axis, row in rows], fontsize=8)
    losses.invert_yaxis()
    losses.set(xlabel="held-out loss, nats a token (dots: seeds; grey: cannot be told from T5 v1.1)")
    for row in (BASE, *AXES["position"], *AXES["together"]):
        runs = list(results.at_best(row).values())
        if runs:
            steps = [int(step) for step in runs[0]["curve"] if int(step)]
            means = [statistics.mean(run["curve"][str(step)] for run in runs) for step in steps]
            curves.plot(steps, means, label=row, linewidth=2.5 if row == BASE else 1.2)
    curves.set(xlabel="steps", ylabel="held-out loss, nats a token")
    curves.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def _file_name(row: str) -> str:
    return row.replace(" ", "_").replace(",", "")


def _run_folder(work: Path, row: str, lr: float, seed: int) -> Path:
    return work / "runs" / f"{_file_name(row)}-{lr:g}-{seed}"


def main() -> None:
    """Train what is missing, or time, or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("parts"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rates", type=float, nargs="+", default=[RATE])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--time", action="store_true", help="only measure the time of a step")
    parser.add_argument("--rounds", type=int, default=30, help="timed steps of each row")
    parser.add_argument("--report", action="store_true", help="only print and draw what is there")
    words = parser.parse_args()
    words.work.mkdir(parents=True, exist_ok=True)
    if words.time:
        time_rows(words.work, words.rounds)
    results = Results(words.work)
    if not words.time and not words.report:
        tokens = prepare_plays(words.work, VOCAB)
        make = partial(run_row, words.work, tokens)
        for seed in range(words.seeds):
            results.runs.fill(make, [(row, words.rates[0], seed) for row in words.rows])
        results.runs.fill(make, [(row, lr, 0) for row in words.rows for lr in words.rates[1:]])
        for seed in range(1, words.seeds):
            results.runs.fill(make, [(row, lr, seed) for row in words.rows if (lr := results.best_rate(row))])
    print(f"{main_table(results)}\n\nSmallest difference that is not noise: {results.smallest_difference():.3f}\n")
    print(f"{longer_table(results)}\n")
    print("\n".join(rate_lines(results)))
    if results.at_best(BASE):
        draw(results, words.work / "parts.png")


if __name__ == "__main__":
    main()
