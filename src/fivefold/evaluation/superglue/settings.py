"""Which of SuperGLUE's tasks, and what is done with them."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fivefold.errors import ConfigError, DataError
from fivefold.evaluation.superglue.task import Task
from fivefold.evaluation.superglue.tasks import TASKS

log = logging.getLogger("fivefold")


@dataclass
class TaskSettings:
    """Which tasks, and where they are."""

    tasks: list[str] = field(default_factory=list)
    """Of boolq, cb, copa, multirc, record, rte, wic, wsc, axb, axg; by default the first eight, as far as --data_dir
    has them."""
    data_dir: str = "aps/super_glue"
    """Folder that holds the official ones (BoolQ/val.jsonl, ...), or a Hub id."""

    def __post_init__(self) -> None:
        """Check the names."""
        for name in self.tasks:
            if name not in TASKS:
                raise ConfigError(f"--tasks got {name!r}; there are {', '.join(TASKS)}.")

    def chosen(self) -> list[Task]:
        """Those named; else the eight, as far as a local folder has them.

        Raises:
            DataError: it has none of them.
        """
        if self.tasks:
            return [TASKS[name] for name in dict.fromkeys(self.tasks)]
        benchmark = [task for task in TASKS.values() if not task.is_diagnostic]
        folder = Path(self.data_dir)
        absent = [task for task in benchmark if folder.is_dir() and not (folder / task.folder).is_dir()]
        for task in absent:
            log.info("%s is left out: %s has no %s.", task.name, folder, task.folder)
        if len(absent) == len(benchmark):
            names = ", ".join(task.folder for task in benchmark)
            raise DataError(f"--data_dir {folder} holds none of the folders {names}; give one that does, or a Hub id.")
        return [task for task in benchmark if task not in absent]


@dataclass
class ScoringSettings(TaskSettings):
    """How answers are got."""

    split: str = "validation"
    """Which examples to answer: validation, test (whose labels are not public: predictions are written, nothing is
    scored), train, or the name of another file. The diagnostics have a test split alone."""
    scoring: Literal["generate", "likelihood"] = "generate"
    """Let the model write its answer, or take the likeliest of those that there are."""
    max_new_tokens: int = 32
    """Most tokens of a written answer; where the answers are known, no more than the longest of them has."""
    shots: int = 0
    """Examples of the train split to show before each question."""
    seed: int = 0
    """Which examples these are."""

    def __post_init__(self) -> None:
        """Check names and numbers."""
        super().__post_init__()
        if self.scoring == "likelihood" and "wsc" in self.tasks:
            raise ConfigError(
                "--scoring likelihood chooses among answers, but wsc has none: it asks for free text; leave it out of "
                "--tasks, or give --scoring generate."
            )
        if self.max_new_tokens < 1 or self.shots < 0 or self.seed < 0:
            raise ConfigError("--max_new_tokens must be at least 1, --shots and --seed at least 0.")

    def chosen(self) -> list[Task]:
        """As above, without what cannot be scored."""
        tasks = super().chosen()
        if self.scoring == "likelihood" and not self.tasks:
            log.info("wsc is left out: it asks for free text, and likelihood chooses among answers.")
            return [task for task in tasks if task.name != "wsc"]
        return tasks


@dataclass
class TuningSettings(TaskSettings):
    """How the tasks become training data."""

    tokenizer: str | None = None
    """Tokenizer folder or Hub id; by default the one of --model."""
    mixture_temperature: float = 1.0
    """Evens out how often tasks are seen: shares are sizes to the power of 1 over this; 1 for as many as there are."""
    mixture_cap: int | None = None
    """The size that larger tasks are taken to have when shares are reckoned; all of their examples are seen."""
    input_length: int = 512
    """Most tokens of a question, end mark included; a decoder's answer counts, too. Of longer ones the passage loses
    its end."""
    packing: bool = False
    """Put as many questions into a row as fit, each seeing itself alone; batch_size then counts rows."""
    validation_examples: int = 200
    """Most validation examples of a task to measure loss and scores on as training goes; 0 measures nothing."""

    def __post_init__(self) -> None:
        """Check names and numbers."""
        super().__post_init__()
        for name in self.tasks:
            if TASKS[name].is_diagnostic:
                raise ConfigError(f"--tasks {name} is a diagnostic without training data; train on rte, and score it.")
        if not self.mixture_temperature > 0:
            raise ConfigError(f"--mixture_temperature is {self.mixture_temperature}; it must be above 0.")
        if self.mixture_cap is not None and self.mixture_cap < 1:
            raise ConfigError(f"--mixture_cap is {self.mixture_cap}; it must be at least 1.")
        if self.input_length < 2 or self.validation_examples < 0:
            raise ConfigError("--input_length must be at least 2 and --validation_examples at least 0.")
