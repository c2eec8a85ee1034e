"""Which numbers of the logs become a picture, and which of them share one."""

from collections.abc import Iterable
from dataclasses import dataclass

from fivefold.report.run_log import RunLog, points


@dataclass(frozen=True)
class Chart:
    """Series that are read together; held-out ones stand in the log with `eval_` in front."""

    name: str
    """Of the file."""
    title: str
    keys: tuple[str, ...]
    starts_at_zero: bool = False


LOSS = Chart("loss", "Loss", ("loss",))

_KNOWN = (
    Chart("reward_margin", "Reward margin: chosen minus rejected", ("reward_margin",)),
    Chart("reward_accuracy", "Share of pairs with a positive margin", ("reward_accuracy",), True),
    Chart("rewards", "Rewards", ("rewards_chosen", "rewards_rejected")),
    Chart("logp", "Log-probability of the answers", ("logp_chosen", "logp_rejected")),
    Chart("kl", "KL from the reference, a token", ("kl",)),
    Chart("tokens_per_answer", "Tokens of the answers", ("tokens_chosen", "tokens_rejected"), True),
    Chart("learning_rate", "Learning rate", ("learning_rate",), True),
    Chart("grad_norm", "Gradient norm before clipping", ("grad_norm",), True),
    Chart("tokens_per_second", "Tokens per second", ("tokens_per_second",), True),
    Chart("nonpadding", "Positions that hold tokens", ("input_nonpadding_frac", "target_nonpadding_frac"), True),
)

# Counts and clocks, which the summary has, and what follows from the loss.
_NOT_DRAWN = frozenset(
    {"step", "seconds", "memory_bytes", "tokens_seen", "eval_tokens", "eval_pairs"}
    | {"eval_perplexity", "eval_galore_perplexity"}
)


def charts_of(runs: list[RunLog]) -> list[Chart]:
    """The pictures that the runs have numbers for, beside the loss; a series that nobody foresaw gets its own."""
    known = {key for chart in (LOSS, *_KNOWN) for key in chart.keys}
    names = dict.fromkeys(name for run in runs for line in (*run.train, *run.evaluations) for name in line)
    unknown = dict.fromkeys(name.removeprefix("eval_") for name in names if name not in _NOT_DRAWN)
    others = (Chart(name, name.replace("_", " ").capitalize(), (name,)) for name in unknown if name not in known)
    return [chart for chart in (*_KNOWN, *others) if has_points(runs, chart)]


def has_points(runs: Iterable[RunLog], chart: Chart) -> bool:
    """Whether any of the runs logged one of the chart's numbers."""
    return any(
        points(run.train, key)[0] or points(run.evaluations, f"eval_{key}")[0] for run in runs for key in chart.keys
    )
