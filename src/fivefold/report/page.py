"""One HTML page about one or several runs, with everything in it: it can be mailed, and opens without a network."""

import base64
import html
import itertools
import statistics
from pathlib import Path
from typing import Any

from fivefold.errors import DataError
from fivefold.report.curves import Picture, draw_curves
from fivefold.report.lineage import Lineage, handed_over
from fivefold.report.run_log import RunLog, points, read_log
from fivefold.training.telemetry import format_duration

_STYLE = """
:root { --ink: #1c2330; --soft: #5d6776; --line: #e4e8ee; --paper: #ffffff; --desk: #f5f7fa; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--desk); color: var(--ink);
       font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Noto Sans", "Noto Sans CJK SC", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 36px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 34px 0 12px; }
.lead { color: var(--soft); margin: 0 0 22px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 12px; }
.card, figure, .table { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
.card { padding: 14px 16px; }
.card b { display: block; font-size: 22px; font-weight: 650; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: 13px; }
figure { margin: 0; padding: 10px; }
figure img { display: block; width: 100%; height: auto; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
.wide { grid-column: 1 / -1; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: 7px 16px; border-bottom: 1px solid var(--line); vertical-align: top;
         overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
tbody tr:last-child th, tbody tr:last-child td { border-bottom: 0; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; }
thead th { color: var(--ink); font-weight: 650; white-space: normal; }
tr.differs td { color: var(--accent); font-weight: 600; }
footer { margin-top: 34px; color: var(--soft); font-size: 13px; }
"""


def write_report(run_dirs: list[Path], output_dir: Path) -> Path:
    """Read the runs' logs, draw their curves over one another and write report.html with the pictures in it.

    Returns:
        The page; the pictures lie beside it.

    Raises:
        DataError: a run without a log, or a damaged one, or output_dir cannot be written to.
    """
    runs = [read_log(run_dir) for run_dir in run_dirs]
    return _write(runs, " / ".join(run.name for run in runs), _lead(runs), output_dir, side_by_side=False)


def write_lineage_report(lineage: Lineage, output_dir: Path) -> Path:
    """Write report.html with the stages that a model went through side by side; the rest as `write_report`."""
    stages = lineage.runs
    lead = [_lead(stages)]
    for parent, child in itertools.pairwise(stages):
        if (step := handed_over(parent, child)) is not None:
            lead.append(f"{child.name} went on from step {step:,} of {parent.name}.")
    title = " \u2192 ".join(run.name for run in stages)
    return _write(stages, title, " ".join([*lead, lineage.origin]).strip(), output_dir, side_by_side=True)


def _write(runs: list[RunLog], title: str, lead: str, output_dir: Path, *, side_by_side: bool) -> Path:
    try:
        pictures = draw_curves(runs, output_dir, side_by_side=side_by_side)
        return write_page(runs, pictures, output_dir, title=title, lead=lead)
    except OSError as error:
        raise DataError(f"The report cannot be written to {output_dir}: {error.strerror}.") from error


def write_page(runs: list[RunLog], pictures: list[Picture], output_dir: Path, *, title: str, lead: str) -> Path:
    """Write report.html: the main numbers, the curves, and the settings side by side with differences marked."""
    summaries = [summarise(run) for run in runs]
    parts = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="lead">{_text(lead)}</p>',
        _cards(summaries[0]) if len(runs) == 1 else _table(summaries, runs, mark_differences=False),
        f'<h2>Curves</h2><div class="curves">{"".join(map(_image, pictures))}</div>',
        _section("Hardware and versions", [run.hardware for run in runs], runs),
        _section("Settings", [_flatten(run.settings) for run in runs], runs),
        "<footer>Losses are natural logarithms, averaged over tokens (over pairs, where preferences are learned), and "
        "perplexity is e to them; as GaLore counts, e to the sum of n batches' means over n + 1, which depends on the "
        "batch size. Speed leaves out evaluations and checkpoints; time and memory do not. Written by fivefold."
        "</footer>",
    ]
    body = "\n".join(part for part in parts if part)
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(title)} - fivefold</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    path = output_dir / "report.html"
    fresh = path.with_name(f".{path.name}.writing")
    try:
        fresh.write_text(page, encoding="utf-8")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path


def summarise(run: RunLog) -> dict[str, str]:
    """The main numbers of a run as label -> text, without what the log does not hold."""
    summary = {}
    measured = [line for line in run.evaluations if line["eval_loss"] is not None]
    if measured:
        best = min(measured, key=lambda line: line["eval_loss"])
        for which, line in (("first", measured[0]), ("last", measured[-1]), ("best", best)):
            summary[f"held-out loss, {which}"] = f"{line['eval_loss']:.4f}"
        for key, label in (
            ("eval_perplexity", "perplexity"),
            ("eval_galore_perplexity", "perplexity as GaLore counts"),
        ):
            if best.get(key) is not None:  # too large for a number, or logged before there was such a key
                summary[f"held-out {label}, best"] = f"{best[key]:.5g}"
    for key, label in (("reward_accuracy", "pairs with a positive margin"), ("reward_margin", "reward margin")):
        for which, found in (
            ("held-out", points(run.evaluations, f"eval_{key}")[1]),
            ("last", points(run.train, key)[1]),
        ):
            if found:
                summary[f"{label}, {which}"] = f"{found[-1]:.1%}" if key == "reward_accuracy" else f"{found[-1]:.4f}"
    lines = [*run.train, *run.evaluations]
    summary["steps"] = f"{max(line['step'] for line in lines):,}"
    if run.train:
        summary["tokens seen"] = f"{run.train[-1]['tokens_seen']:,}"
        summary["tokens/s, median"] = f"{statistics.median(line['tokens_per_second'] for line in run.train):,.0f}"
        summary["peak memory"] = f"{max(line['memory_bytes'] for line in run.train) / 2**20:,.0f} MiB"
    summary["time"] = format_duration(max(line["seconds"] for line in lines))
    return summary


def _lead(runs: list[RunLog]) -> str:
    devices = {str(run.hardware["device"]) for run in runs if "device" in run.hardware}
    what = "One training run" if len(runs) == 1 else f"{len(runs)} training runs"
    return f"{what} on {', '.join(sorted(devices))}." if devices else f"{what}."


def _cards(summary: dict[str, str]) -> str:
    cards = (
        f'<div class="card"><b>{_text(value)}</b><span>{_text(label)}</span></div>' for label, value in summary.items()
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _section(heading: str, columns: list[dict[str, Any]], runs: list[RunLog]) -> str:
    return f"<h2>{heading}</h2>{_table(columns, runs)}" if any(columns) else ""


def _table(columns: list[dict[str, Any]], runs: list[RunLog], *, mark_differences: bool = True) -> str:
    head = ""
    if len(runs) > 1:
        head = f"<thead><tr><th></th>{''.join(f'<th>{_text(run.name)}</th>' for run in runs)}</tr></thead>"
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [_value(column.get(key, "")) for column in columns]
        differs = ' class="differs"' if mark_differences and len(set(values)) > 1 else ""
        rows.append(f"<tr{differs}><th>{_text(key)}</th>{''.join(f'<td>{_text(value)}</td>' for value in values)}</tr>")
    return f'<div class="table"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _value(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "true" if value else "false"
        case list():
            return ", ".join(_value(item) for item in value)
        case _:
            return str(value)


def _image(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode("ascii")
    wide = ' class="wide"' if picture.is_wide else ""
    what = _text(picture.path.stem.replace("_", " "))
    return f'<figure{wide}><img alt="{what}" src="data:image/png;base64,{data}"></figure>'


def _text(text: str) -> str:
    return html.escape(text, quote=True)
