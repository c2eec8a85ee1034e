"""Scores as a table and as numbers, answers as lines, predictions as files to submit."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fivefold.evaluation.results import Results, write_whole
from fivefold.evaluation.superglue.example import Example, Source, Verdict
from fivefold.evaluation.superglue.score import TaskScore, average, score_task
from fivefold.evaluation.superglue.tasks import TASKS
from fivefold.evaluation.table import table

SUBMISSION = "submission"


def write_superglue(results: Results, verdicts: Mapping[str, Sequence[Verdict]], numbers: Mapping[str, Any]) -> str:
    """Score what has labels, write all, and say it.

    Args:
        verdicts: by task.
        numbers: what else to note of the run.

    Returns:
        The table.
    """
    scored = {name: of_task for name, of_task in verdicts.items() if all(one.example.gold for one in of_task)}
    scores = {name: score_task(TASKS[name], of_task) for name, of_task in scored.items()}
    submission = results.folder / SUBMISSION
    for name, of_task in verdicts.items():
        lines = TASKS[name].submission(of_task)
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        write_whole(submission / f"{TASKS[name].folder}.jsonl", text)
    mean = average(scores)
    results.write(
        {**numbers, "average": mean, "scores": {n: asdict(one) for n, one in scores.items()}}, _lines(verdicts)
    )
    said = [score_table(scores)] if scores else []
    if mean is not None:
        said.append(f"SuperGLUE, the mean over its eight tasks: {mean:.1f}")
    if without := [name for name in verdicts if name not in scores]:
        said.append(f"no labels, so no scores: {', '.join(without)}")
    return "\n".join([*said, f"{results.file}", f"{submission}/: to submit"])


def score_table(scores: Mapping[str, TaskScore]) -> str:
    """Every metric of every task, in percent, beside both baselines."""
    rows = [["task", "metric", "score", "majority", "guessed", "examples", "outside the labels"]]
    for name, score in scores.items():
        for metric, value in score.metrics.items():
            percents = (value, score.majority[metric], score.guessed[metric])
            counts = (score.num_examples, score.num_outside)
            rows.append([name, metric, *(f"{one:.1f}" for one in percents), *(f"{one:,}" for one in counts)])
    return table(rows)


def read_verdicts(file: Path) -> dict[str, list[Verdict]]:
    """What `write_superglue` noted, by task, as far as scores need it."""
    verdicts: dict[str, list[Verdict]] = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        example = Example(
            tuple(line["idx"]), Source("", ""), tuple(line["choices"]), tuple(line["gold"]), pair=line["pair"]
        )
        verdicts.setdefault(line["task"], []).append(Verdict(example, line["answer"], line["prediction"]))
    return verdicts


def _lines(verdicts: Mapping[str, Sequence[Verdict]]) -> Iterator[dict[str, Any]]:
    for name, of_task in verdicts.items():
        for verdict in of_task:
            example = verdict.example
            yield {
                "task": name,
                "idx": list(example.idx),
                "choices": list(example.choices),
                "gold": list(example.gold),
                "answer": verdict.answer,
                "prediction": verdict.prediction,
                "pair": example.pair,
            }
