"""A model's scores on SuperGLUE, beside those of answers that know nothing of the questions."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fivefold.evaluation.superglue.example import Example, Verdict
from fivefold.evaluation.superglue.task import Task
from fivefold.evaluation.superglue.tasks import TASKS

_GUESSES = 100
"""Times that all questions are guessed; the mean of the scores is the baseline."""


@dataclass(frozen=True)
class TaskScore:
    """Of one task; metrics in percent, by name."""

    num_examples: int
    num_outside: int
    """Answers outside the label set."""
    metrics: dict[str, float]
    majority: dict[str, float]
    """The same for always the most frequent answer."""
    guessed: dict[str, float]
    """The same for one of the possible answers at random."""

    @property
    def score(self) -> float:
        """The mean of the metrics, which is what the benchmark averages."""
        return sum(self.metrics.values()) / len(self.metrics)


def score_task(task: Task, verdicts: Sequence[Verdict]) -> TaskScore:
    """The score of some answers to labelled questions."""
    examples = [verdict.example for verdict in verdicts]
    draw = random.Random(0)
    rounds = [
        _metrics(task, examples, [draw.choice(task.guesses(example)) for example in examples]) for _ in range(_GUESSES)
    ]
    return TaskScore(
        len(verdicts),
        sum(verdict.prediction is None for verdict in verdicts),
        {name: metric(verdicts) for name, metric in task.metrics.items()},
        _metrics(task, examples, task.most_frequent(examples)),
        {name: sum(one[name] for one in rounds) / _GUESSES for name in task.metrics},
    )


def average(scores: Mapping[str, TaskScore]) -> float | None:
    """The mean over the tasks; None where not all eight were scored. Diagnostics do not count."""
    benchmark = [name for name, task in TASKS.items() if not task.is_diagnostic]
    if not all(name in scores for name in benchmark):
        return None
    return sum(scores[name].score for name in benchmark) / len(benchmark)


def _metrics(task: Task, examples: Sequence[Example], answers: Sequence[str]) -> dict[str, float]:
    verdicts = [task.judge(example, answer) for example, answer in zip(examples, answers, strict=True)]
    return {name: metric(verdicts) for name, metric in task.metrics.items()}
