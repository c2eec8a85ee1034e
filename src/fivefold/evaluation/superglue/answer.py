"""A model's answers to a task's questions."""

import random
from collections.abc import Callable, Sequence

from fivefold.evaluation.respond import Question, Respondent
from fivefold.evaluation.superglue.example import Example, Source, Verdict
from fivefold.evaluation.superglue.task import Task
from fivefold.models.answer_journal import AnswerJournal


def answer_task(
    task: Task,
    examples: Sequence[Example],
    shots: Sequence[tuple[Source, str]],
    respondent: Respondent,
    batch_size: int,
    journal: AnswerJournal,
    show_progress: Callable[[int, int], None],
) -> list[Verdict]:
    """Ask all questions of a task.

    Args:
        shots: from `draw_shots`.
        journal: of the answers so far.
        show_progress: told how many more are answered, and how many more there are to answer.
    """
    questions = [Question(example.source, example.choices, shots) for example in examples]
    answers = respondent.ask(task.name, questions, batch_size, journal, show_progress)
    return [task.judge(example, answer) for example, answer in zip(examples, answers, strict=True)]


def draw_shots(examples: Sequence[Example], number: int, seed: int) -> list[tuple[Source, str]]:
    """Some of a task's training examples with an answer, the same for all of its questions.

    Args:
        number: of them, or as many as there are.
    """
    telling = [example for example in examples if example.targets]
    drawn = random.Random(seed).sample(telling, min(number, len(telling)))
    return [(example.source, example.targets[0]) for example in drawn]
