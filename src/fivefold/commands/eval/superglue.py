"""Score a model on SuperGLUE: every task as text in, text out, with the official metrics, beside baselines."""

import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fivefold.errors import ConfigError, DataError
from fivefold.evaluation.settings import EvaluationSettings

if TYPE_CHECKING:
    from fivefold.evaluation.superglue.example import Example, Source
    from fivefold.evaluation.superglue.task import Task

log = logging.getLogger("fivefold")


@dataclass
class SuperGLUESettings:
    """Which tasks, and how answers are got."""

    tasks: list[str] = field(default_factory=list)
    """Of boolq, cb, copa, multirc, record, rte, wic, wsc, axb, axg; by default the first eight, as far as --data_dir
    has them."""
    data_dir: str = "aps/super_glue"
    """Folder that holds the official ones (BoolQ/val.jsonl, ...), or a Hub id."""
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
        from fivefold.evaluation.superglue.tasks import TASKS

        for name in self.tasks:
            if name not in TASKS:
                raise ConfigError(f"--tasks got {name!r}; there are {', '.join(TASKS)}.")
        if self.scoring == "likelihood" and "wsc" in self.tasks:
            raise ConfigError(
                "--scoring likelihood chooses among answers, but wsc has none: it asks for free text; leave it out of "
                "--tasks, or give --scoring generate."
            )
        if self.max_new_tokens < 1 or self.shots < 0 or self.seed < 0:
            raise ConfigError("--max_new_tokens must be at least 1, --shots and --seed at least 0.")


def run(evaluation: EvaluationSettings, superglue: SuperGLUESettings, *, dry_run: bool) -> None:
    """Read the tasks, let the model answer them, and write scores, answers and the files to submit."""
    from fivefold.evaluation.results import Results, digest

    results = Results("superglue", evaluation)
    tasks = _tasks(superglue)
    examples = {task.name: _read(task, evaluation, superglue) for task in tasks}
    shots = {task.name: _shots(task, superglue) for task in tasks}
    print(", ".join(f"{name} {len(of_task):,}" for name, of_task in examples.items()), flush=True)
    if dry_run:
        print(f"would write {results.folder}")
        return

    from fivefold.evaluation.respond import Respondent
    from fivefold.evaluation.superglue.answer import answer_task
    from fivefold.evaluation.superglue.report import write_superglue
    from fivefold.serving.open_model import open_model
    from fivefold.serving.progress import progress

    model, tokenizer = open_model(evaluation.model, evaluation.dtype)
    respondent = Respondent(model, tokenizer, superglue.scoring, evaluation.input_length, superglue.max_new_tokens)
    texts = (repr((of_task, shots[name])) for name, of_task in examples.items())
    described = {**asdict(superglue), "data": digest(texts), **evaluation.described}
    verdicts, seconds = {}, time.perf_counter()
    with results.journal(described) as journal, progress("questions") as show_progress:
        for task in tasks:
            verdicts[task.name] = answer_task(
                task, examples[task.name], shots[task.name], respondent, evaluation.batch_size, journal, show_progress
            )
    seconds = time.perf_counter() - seconds
    print(write_superglue(results, verdicts, {**described, "seconds": seconds, "cut": respondent.prompts.num_cut}))


def _tasks(superglue: SuperGLUESettings) -> "list[Task]":
    """Those named; else the eight, as far as a local folder has them and they can be scored."""
    from fivefold.evaluation.superglue.tasks import TASKS

    if superglue.tasks:
        return [TASKS[name] for name in dict.fromkeys(superglue.tasks)]
    folder = Path(superglue.data_dir)
    left_out = {}
    for name, task in TASKS.items():
        if task.is_diagnostic:
            left_out[name] = ""
        elif folder.is_dir() and not (folder / task.folder).is_dir():
            left_out[name] = f"{folder} has no {task.folder}"
        elif superglue.scoring == "likelihood" and name == "wsc":
            left_out[name] = "likelihood has no answers to choose among"
    for name, why in left_out.items():
        if why:
            log.info("%s is left out: %s.", name, why)
    if not (chosen := [task for name, task in TASKS.items() if name not in left_out]):
        names = ", ".join(task.folder for task in TASKS.values())
        raise DataError(f"--data_dir {folder} holds none of the folders {names}; give one that does, or a Hub id.")
    return chosen


def _read(task: "Task", evaluation: EvaluationSettings, superglue: SuperGLUESettings) -> "list[Example]":
    from fivefold.evaluation.superglue.read import check_labels, read_examples

    examples = read_examples(task, superglue.data_dir, superglue.split)[: evaluation.limit]
    check_labels(task, examples, superglue.data_dir, superglue.split)
    return examples


def _shots(task: "Task", superglue: SuperGLUESettings) -> "list[tuple[Source, str]]":
    from fivefold.evaluation.superglue.answer import draw_shots
    from fivefold.evaluation.superglue.read import read_examples

    if not superglue.shots:
        return []
    if task.is_diagnostic:
        raise ConfigError(f"--shots needs training examples, but {task.name} has none; leave it out of --tasks.")
    return draw_shots(read_examples(task, superglue.data_dir, "train"), superglue.shots, superglue.seed)
