"""The curves of one or several runs as pictures: loss, learning rate, gradient norm and speed over the steps."""

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from fivefold.errors import DataError
from fivefold.training.telemetry import HARDWARE_NAME, LOG_NAME, read_log_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Readable on white, and told apart by colour-blind readers too (after Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#000000")

# For runs with Chinese, Japanese or Korean names, where one of these is installed.
_CJK_FONTS = ("Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Microsoft YaHei", "WenQuanYi Zen Hei")


@dataclass
class RunLog:
    """What one run left behind."""

    name: str
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)


def read_log(run_dir: Path) -> RunLog:
    """Read the log, the settings and the hardware note of a run; the last two may be missing.

    Raises:
        DataError: no such run, an empty log, or a damaged file.
    """
    lines = read_log_lines(run_dir / LOG_NAME)
    if not lines:
        raise DataError(f"{run_dir / LOG_NAME} is empty: the run was stopped before it logged its first step.")
    return RunLog(
        name=run_dir.resolve().name,
        train=[line for line in lines if "loss" in line],
        evaluations=[line for line in lines if "eval_loss" in line],
        settings=_read_mapping(run_dir / "run.yaml"),
        hardware=_read_mapping(run_dir / HARDWARE_NAME),
    )


def draw_curves(runs: list[RunLog], output_dir: Path) -> list[Path]:
    """Draw loss.png, learning_rate.png, grad_norm.png and tokens_per_second.png, the runs over one another.

    Returns:
        The pictures that have something to show, loss first.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    pictures = [_draw_loss(runs, output_dir / "loss.png")]
    for key, title in (
        ("learning_rate", "Learning rate"),
        ("grad_norm", "Gradient norm before clipping"),
        ("tokens_per_second", "Tokens per second"),
    ):
        if any(_points(run.train, key)[0] for run in runs):
            pictures.append(_draw_series(runs, key, title, output_dir / f"{key}.png"))
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


def _draw_loss(runs: list[RunLog], path: Path) -> Path:
    figure, axes = _new_figure(9.0, 4.8)
    seen: list[float] = []
    for index, run in enumerate(runs):
        colour = held_out_colour = COLOURS[index % len(COLOURS)]
        prefix = f"{_label(run)}: "
        steps, losses = _points(run.train, "loss")
        averages = smooth(losses)
        if len(runs) == 1:
            prefix, held_out_colour = "", COLOURS[1]
            axes.plot(steps, losses, color=colour, alpha=0.22, linewidth=0.8)
        if steps:
            axes.plot(steps, averages, color=colour, alpha=0.75, linewidth=1.3, label=f"{prefix}training, smoothed")
        eval_steps, eval_losses = _points(run.evaluations, "eval_loss")
        if eval_steps:
            best = min(range(len(eval_losses)), key=eval_losses.__getitem__)
            label = f"{prefix}held-out, best {eval_losses[best]:.3f}"
            marker = "o" if len(eval_steps) <= 40 else None
            axes.plot(
                eval_steps, eval_losses, color=held_out_colour, linewidth=2, marker=marker, markersize=4.5, label=label
            )
            axes.plot(eval_steps[best], eval_losses[best], "o", markersize=10, color=held_out_colour, fillstyle="none")
        seen += averages + eval_losses
    axes.set_ylabel("loss (nats a token)")
    axes.set_title("Loss", loc="left", fontsize=13, fontweight="bold")
    if seen:
        # The raw losses of single batches may leave the frame: it belongs to the averages and the held-out points.
        margin = 0.06 * (max(seen) - min(seen)) or 0.1
        axes.set_ylim(min(seen) - margin, max(seen) + margin)
        axes.legend(frameon=False)
    return _save(figure, path)


def _draw_series(runs: list[RunLog], key: str, title: str, path: Path) -> Path:
    figure, axes = _new_figure(4.6, 2.7)
    for index, run in enumerate(runs):
        steps, values = _points(run.train, key)
        axes.plot(steps, values, color=COLOURS[index % len(COLOURS)], linewidth=1.2, label=_label(run))
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_ylim(bottom=0)
    if key == "tokens_per_second":
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if len(runs) > 1:
        axes.legend(frameon=False, fontsize=9)
    return _save(figure, path)


def _new_figure(width: float, height: float) -> "tuple[Figure, Axes]":
    # Figure without pyplot: no global state and no window system, so it works in any process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors="#444444", labelsize=9)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("step", color="#444444")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return figure, axes


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


def _points(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that hold a number under `key` (null stands for one that was not finite)."""
    found = [(line["step"], line[key]) for line in lines if line.get(key) is not None and math.isfinite(line[key])]
    return [step for step, _ in found], [value for _, value in found]


def _label(run: RunLog) -> str:
    # A dollar sign would start a formula, and a leading underscore hides a line from the legend.
    label = run.name.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _read_mapping(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no table of settings, but {type(content).__name__}.")
    return content
