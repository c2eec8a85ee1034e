"""The runs that a run goes back to: each started from the weights that the one before had written."""

import re
from dataclasses import dataclass
from pathlib import Path

from fivefold.report.run_log import RunLog, read_log
from fivefold.training.telemetry import LOG_NAME

# What a run calls the models that it writes.
_OUTPUT = re.compile(r"final|last|best|step_\d{6,}")
_STEP = re.compile(r"step_(\d{6,})")


@dataclass
class Lineage:
    """Runs in the order in which the model went through them."""

    runs: list[RunLog]
    origin: str
    """What the first of them started from, as a sentence; empty where that was fresh weights."""


def read_lineage(run_dir: Path) -> Lineage:
    """Follow `model:` in each run's run.yaml back to the first run that can be found.

    A model is a run's output where its folder is called as those are (final, last, best, step_000500). A relative path
    is looked up from here, and from the folders above the run that names it, so that runs may be moved together.

    Raises:
        DataError: a run of the lineage has a damaged log or damaged settings.
    """
    folder, runs, visited = run_dir, [read_log(run_dir)], {run_dir.resolve()}
    while model := runs[0].settings.get("model"):
        parent = _find_run(str(model), folder)
        if parent is None:
            where = Path(str(model))
            lost = f", but there is no run in {where.parent} any more" if _OUTPUT.fullmatch(where.name) else ""
            return Lineage(runs, f"{runs[0].name} started from {model}{lost}.")
        if parent.resolve() in visited:
            return Lineage(runs, f"{runs[0].name} started from {model}, which is one of these runs again.")
        visited.add(parent.resolve())
        folder = parent
        runs.insert(0, read_log(parent))
    return Lineage(runs, "")


def handed_over(parent: RunLog, child: RunLog) -> int | None:
    """The step of the parent that the child started from, where the name of the folder says it."""
    match = _STEP.fullmatch(Path(str(child.settings.get("model"))).name)
    last = max(line["step"] for line in (*parent.train, *parent.evaluations))
    return int(match[1]) if match and int(match[1]) < last else None


def _find_run(model: str, folder: Path) -> Path | None:
    """The run that wrote a model, or None."""
    named = Path(model).expanduser()
    if not _OUTPUT.fullmatch(named.name):
        return None
    places = [named.parent, *(above / named.parent for above in folder.resolve().parents)]
    return next((place for place in places if (place / LOG_NAME).is_file()), None)
