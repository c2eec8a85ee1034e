"""SuperGLUE's examples out of a folder in the official format, or from the Hub."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from fivefold.corpus.files import Record
from fivefold.corpus.hub import HubDataset, HubReader
from fivefold.errors import DataError
from fivefold.evaluation.superglue.example import Example
from fivefold.evaluation.superglue.task import BrokenRecord, Task

HUB_ID = "aps/super_glue"
_HUB_CONFIGS = {"wsc": "wsc.fixed"}
_SPELLINGS = {"validation": ("val", "validation", "dev", "dev32"), "test": ("test",), "train": ("train",)}
"""A split's file, by the names that it goes by; a diagnostic's only one is called as the task."""


def read_examples(task: Task, data: str, split: str) -> list[Example]:
    """All examples of a task's split, in their order.

    Args:
        data: a folder that holds the task's official one (BoolQ/val.jsonl), or a Hub id.
        split: train, validation or test, or the name of another file in that folder.

    Raises:
        DataError: no such file, or a record that cannot be read.
    """
    records = _local(task, Path(data), split) if Path(data).is_dir() else _from_hub(task, data, split)
    examples = []
    for where, record in records:
        try:
            examples.extend(task.example(flat) for flat in task.flatten(record))
        except BrokenRecord as error:
            raise DataError(f"{where}: {error}.") from None
        except KeyError as error:
            there = ", ".join(map(repr, record)) or "none"
            raise DataError(f"{where}: {task.folder} needs the field {error}, but there are {there}.") from None
        except (TypeError, ValueError, IndexError, AttributeError) as error:
            raise DataError(f"{where} is no record of {task.folder} ({error}).") from None
    if not examples:
        raise DataError(f"{data}: {task.folder} has no records in {split}.")
    return examples


def check_labels(task: Task, examples: Sequence[Example], data: str, split: str) -> None:
    """Refuse examples of which some have labels and some have not.

    Raises:
        DataError: these.
    """
    missing = sum(not example.gold for example in examples)
    if 0 < missing < len(examples):
        raise DataError(
            f"{missing:,} of the {len(examples):,} examples of {task.folder} in {split} of {data} have no label; give "
            "a split where all have one, or none: then predictions are written and nothing is scored."
        )


def _local(task: Task, folder: Path, split: str) -> Iterator[tuple[str, Record]]:
    home = folder / task.folder
    spellings = (task.folder,) if task.is_diagnostic else _SPELLINGS.get(split, (split.removesuffix(".jsonl"),))
    names = [f"{name}.jsonl" for name in spellings]
    file = next((home / name for name in names if (home / name).is_file()), None)
    if file is None:
        there = ", ".join(sorted(path.name for path in home.glob("*.jsonl"))) or "no .jsonl file"
        raise DataError(f"{home} has no {' or '.join(names)}, which --tasks {task.name} needs; there is {there}.")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 text ({error.reason}); convert it first.") from None
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{file}:{number} is not JSON ({error}); mend or remove the line.") from None
        if not isinstance(record, dict):
            raise DataError(f"{file}:{number} holds a {type(record).__name__}; expected an object.")
        yield f"{file}:{number}", record


def _from_hub(task: Task, hub_id: str, split: str) -> Iterator[tuple[str, Record]]:
    split = "test" if task.is_diagnostic else split
    reader = HubReader(HubDataset(hub_id, _HUB_CONFIGS.get(task.name, task.name), split), streaming=False)
    for record in reader:
        yield reader.where, record
