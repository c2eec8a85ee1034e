"""Score a model on SuperGLUE: every task as text in, text out, with the official metrics, beside baselines."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from fivefold.errors import ConfigError
from fivefold.evaluation.settings import EvaluationSettings
from fivefold.evaluation.superglue.settings import ScoringSettings

if TYPE_CHECKING:
    from fivefold.evaluation.superglue.example import Example, Source
    from fivefold.evaluation.superglue.task import Task


def run(evaluation: EvaluationSettings, scoring: ScoringSettings, *, dry_run: bool) -> None:
    """Read the tasks, let the model answer them, and write scores, answers and the files to submit."""
    from fivefold.evaluation.results import Results, digest

    results = Results("superglue", evaluation)
    tasks = scoring.chosen()
    examples = {task.name: _read(task, evaluation, scoring) for task in tasks}
    shots = {task.name: _shots(task, scoring) for task in tasks}
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
    respondent = Respondent(model, tokenizer, scoring.scoring, evaluation.input_length, scoring.max_new_tokens)
    data = digest(repr((of_task, shots[name])) for name, of_task in examples.items())
    described = {**evaluation.described, **asdict(scoring), "data": data}
    verdicts, begin = {}, time.perf_counter()
    with results.journal(described) as journal, progress("questions") as show_progress:
        show_progress(0, sum(map(len, examples.values())))
        for task in tasks:
            verdicts[task.name] = answer_task(
                task, examples[task.name], shots[task.name], respondent, evaluation.batch_size, journal, show_progress
            )
    measured = {"seconds": time.perf_counter() - begin, "questions_cut": respondent.prompts.num_cut}
    print(write_superglue(results, verdicts, {**described, **measured}))


def _read(task: "Task", evaluation: EvaluationSettings, scoring: ScoringSettings) -> "list[Example]":
    from fivefold.evaluation.superglue.read import check_labels, read_examples

    examples = read_examples(task, scoring.data_dir, scoring.split)[: evaluation.limit]
    check_labels(task, examples, scoring.data_dir, scoring.split)
    return examples


def _shots(task: "Task", scoring: ScoringSettings) -> "list[tuple[Source, str]]":
    from fivefold.evaluation.superglue.answer import draw_shots
    from fivefold.evaluation.superglue.read import read_examples

    if not scoring.shots:
        return []
    if task.is_diagnostic:
        raise ConfigError(f"--shots needs training examples, but {task.name} has none; leave it out of --tasks.")
    return draw_shots(read_examples(task, scoring.data_dir, "train"), scoring.shots, scoring.seed)
