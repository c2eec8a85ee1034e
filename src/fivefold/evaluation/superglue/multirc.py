"""MultiRC: which of several answers to a question on a passage are right."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from fivefold.corpus.files import Record
from fivefold.evaluation.superglue.example import Source, Verdict
from fivefold.evaluation.superglue.task import Task


class MultiRC(Task):
    """Each answer is judged alone, and grouped with the others to its question."""

    def flatten(self, record: Record) -> Iterator[Record]:
        """An official passage, with questions and answers in it, to one record an answer."""
        if "passage" not in record:
            yield record
            return
        passage = record["passage"]
        for question in passage["questions"]:
            for answer in question["answers"]:
                yield {
                    "paragraph": passage["text"],
                    "question": question["question"],
                    "answer": answer["text"],
                    "label": answer.get("label"),
                    "idx": {"paragraph": record["idx"], "question": question["idx"], "answer": answer["idx"]},
                }

    def source(self, record: Record) -> Source:
        """Without the markup that numbers sentences."""
        return Source(*(re.sub(r"</?b>", "", part.replace("<br>", " ")) for part in super().source(record)))

    def idx_of(self, record: Record) -> tuple[int, ...]:
        """Passage, question and answer."""
        return tuple(int(record["idx"][name]) for name in ("paragraph", "question", "answer"))

    def submission(self, verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
        """A line a passage, its questions and answers inside."""
        ordered = sorted(verdicts, key=lambda verdict: verdict.example.idx)
        for passage, of_passage in groupby(ordered, lambda verdict: verdict.example.idx[0]):
            questions = []
            for question, of_question in groupby(of_passage, lambda verdict: verdict.example.idx[1]):
                answers = [
                    {"idx": verdict.example.idx[2], "label": int(verdict.prediction == "True")}
                    for verdict in of_question
                ]
                questions.append({"idx": question, "answers": answers})
            yield {"idx": passage, "passage": {"questions": questions}}
