"""What one run left behind: its log, its settings and the hardware it ran on."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fivefold.errors import DataError
from fivefold.training.telemetry import HARDWARE_NAME, LOG_NAME, read_log_lines


@dataclass
class RunLog:
    """The lines of one run's log, and the files beside it."""

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
        settings=read_mapping(run_dir / "run.yaml"),
        hardware=read_mapping(run_dir / HARDWARE_NAME),
    )


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file of named values; nothing where there is no such file.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} is no table of settings, but {type(content).__name__}.")
    return content


def points(lines: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the lines that hold a number under `key` (null stands for one that was not finite)."""
    found = [(line["step"], line[key]) for line in lines if _is_number(line.get(key))]
    return [step for step, _ in found], [value for _, value in found]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
