"""The curves of one or several runs as pictures, over one another or, the stages of a lineage, side by side."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fivefold.report.charts import LOSS, Chart, charts_of, has_points
from fivefold.report.run_log import RunLog, points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable on white, and told apart by colour-blind readers too (after Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")

# For runs with Chinese, Japanese or Korean names, where one of these is installed.
_CJK_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei")

# Losses that differ by more than this factor go on a logarithmic axis: those of SFT start at 10 and matter below 0.1.
_WIDE = 20


class Picture(NamedTuple):
    """A drawn chart."""

    path: Path
    is_wide: bool
    """Whether it fills a page's width."""


def draw_curves(runs: list[RunLog], output_dir: Path, *, side_by_side: bool = False) -> list[Picture]:
    """Draw loss.png, and a picture for each of the other numbers that the logs hold.

    Args:
        runs: whose curves.
        output_dir: for the pictures, made if missing.
        side_by_side: each run has its own frame, in the given order; otherwise they share one.

    Returns:
        The pictures that have something to show, loss first.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    panels = [[run] for run in runs] if side_by_side else [runs]
    pictures = [_draw(panels, LOSS, _plot_loss, (9.0, 4.8), output_dir)]
    for chart in charts_of(runs):
        pictures.append(_draw(panels, chart, _plot_series, (4.6, 2.7), output_dir))
    return pictures


def smooth(values: list[float]) -> list[float]:
    """Mean over a window around each point: a twentieth of the curve, at most 21 points, narrower near the start.

    Centred, because an average over the past alone would draw a falling loss too high, above the held-out one. Only at
    the end, where a curve is flat, does the window reach further back than forward.
    """
    widest = min(10, len(values) // 40)
    averages = []
    for index in range(len(values)):
        half_width = min(widest, index)
        window = values[index - half_width : index + half_width + 1]
        averages.append(sum(window) / len(window))
    return averages


def _draw(
    panels: list[list[RunLog]],
    chart: Chart,
    plot: "Callable[[Axes, list[RunLog], Chart], None]",
    size: tuple[float, float],
    output_dir: Path,
) -> Picture:
    """One picture: a frame for each panel that has something to show, all of them where none has."""
    panels = [runs for runs in panels if has_points(runs, chart)] or panels
    width, height = size
    figure, frames = _new_figure(max(width, 4.6 * len(panels)), height, len(panels))
    large = height > 4
    for axes, runs in zip(frames, panels, strict=True):
        plot(axes, runs, chart)
        title = chart.title if len(panels) == 1 else _label(runs[0])
        axes.set_title(title, loc="left", fontsize=13 if large else 11, fontweight="bold")
    if len(panels) > 1:
        figure.suptitle(chart.title, x=0.01, ha="left", fontsize=14 if large else 12, fontweight="bold")
    return Picture(_save(figure, output_dir / f"{chart.name}.png"), large or len(panels) > 1)


def _plot_loss(axes: "Axes", runs: list[RunLog], chart: Chart) -> None:
    seen: list[float] = []
    for index, run in enumerate(runs):
        colour = held_out_colour = COLOURS[index % len(COLOURS)]
        prefix = f"{_label(run)}: "
        steps, losses = points(run.train, "loss")
        averages = smooth(losses)
        if len(runs) == 1:
            prefix, held_out_colour = "", COLOURS[1]
            axes.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.8)
        if steps:
            axes.plot(steps, averages, color=colour, alpha=0.75, linewidth=1.3, label=f"{prefix}training, smoothed")
        eval_steps, eval_losses = points(run.evaluations, "eval_loss")
        if eval_steps:
            best = min(range(len(eval_losses)), key=eval_losses.__getitem__)
            label = f"{prefix}held-out, best {eval_losses[best]:.3f}"
            marker = "o" if len(eval_steps) <= 40 else None
            axes.plot(
                eval_steps, eval_losses, color=held_out_colour, linewidth=2, marker=marker, markersize=4.5, label=label
            )
            axes.plot(eval_steps[best], eval_losses[best], "o", markersize=10, color=held_out_colour, fillstyle="none")
        seen += averages + eval_losses
    axes.set_ylabel("loss (nats a pair)" if any(is_preference(run) for run in runs) else "loss (nats a token)")
    if seen:
        # The raw losses of single batches may leave the frame: it belongs to the averages and the held-out points.
        low, high = min(seen), max(seen)
        if high > _WIDE * low > 0:
            axes.set_yscale("log")
            axes.set_ylim(low / 1.2, high * 1.2)
        else:
            margin = 0.06 * (high - low) or 0.1
            axes.set_ylim(low - margin, high + margin)
        axes.legend(frameon=False)


def _plot_series(axes: "Axes", runs: list[RunLog], chart: Chart) -> None:
    several = len(runs) > 1 or len(chart.keys) > 1
    series = [(run, key) for run in runs for key in chart.keys]
    is_labelled = False
    for index, (run, key) in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        words = [_label(run)] if len(runs) > 1 else []
        words += [key.replace("_", " ")] if len(chart.keys) > 1 else []
        steps, values = points(run.train, key)
        if steps:
            axes.plot(steps, values, color=colour, linewidth=1.2, label=": ".join(words) or "training")
        eval_steps, eval_values = points(run.evaluations, f"eval_{key}")
        if eval_steps:
            colour = colour if several else COLOURS[1]
            label = ", ".join([": ".join(words), "held-out"]) if words else "held-out"
            axes.plot(eval_steps, eval_values, "o--", color=colour, linewidth=1.6, markersize=3.5, label=label)
        is_labelled |= bool(several or (steps and eval_steps))
    if chart.starts_at_zero:
        axes.set_ylim(bottom=0)
    if chart.name == "tokens_per_second":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if is_labelled:
        axes.legend(frameon=False, fontsize=9)


def is_preference(run: RunLog) -> bool:
    """Whether the run learned from preferences: its loss is one of pairs."""
    return any("reward_margin" in line for line in run.train[:1] + run.evaluations[:1])


def _new_figure(width: float, height: float, columns: int) -> "tuple[Figure, list[Axes]]":
    # Figure without pyplot: no global state and no window system, so it works in any process.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    frames = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for axes in frames:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#888888")
        axes.tick_params(colors="#444444", labelsize=9)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("step", color="#444444")
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, frames


def _save(figure: "Figure", path: Path) -> Path:
    import matplotlib
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    fonts = ["DejaVu Sans", *(name for name in _CJK_FONTS if name in installed)]
    fresh = path.with_name(f".{path.name}.writing")
    try:
        with matplotlib.rc_context({"font.sans-serif": fonts}), warnings.catch_warnings():
            # Where no font has a run's name, boxes in the legend are enough of a hint.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(fresh, format="png")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def _label(run: RunLog) -> str:
    # A dollar sign would start a formula, and a leading underscore hides a line from the legend.
    label = run.name.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label
