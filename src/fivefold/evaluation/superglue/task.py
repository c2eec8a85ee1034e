"""What the ten tasks have in common, and those that only name fields and labels."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fivefold.corpus.files import Record
from fivefold.evaluation.superglue.example import Example, Source, Verdict
from fivefold.evaluation.superglue.metrics import Metric


class BrokenRecord(ValueError):
    """A record without a field, or with another label than there are."""


@dataclass(frozen=True)
class Task:
    """Premises and hypotheses, passages and questions: some fields of a record, one of a few labels.

    Differs: T5's appendix D writes "wic pos: N sentence1: ..."; the data have lost that field, and T5's own code does
    as is done here. Fields stand in the order of their names, as they do there.
    """

    name: str
    folder: str
    """As the benchmark calls it: of the data, and of the file to submit."""
    prefix: str
    """The word that tells the model what to do; the diagnostics are cast as RTE."""
    fields: Mapping[str, str]
    """Of the record, by the name in the text, in the order of the text."""
    passage: str
    """The one that may be cut."""
    labels: tuple[str, ...]
    """As text, in the order of their numbers."""
    metrics: Mapping[str, Metric]
    submitted: Mapping[str, Any] = field(default_factory=dict)
    """Labels in the file to submit, where they are not the texts."""
    is_diagnostic: bool = False
    """Not part of the benchmark's average, and without training data."""

    def flatten(self, record: Record) -> Iterator[Record]:
        """The questions of an official record, each in the form of the Hub's records.

        Raises:
            KeyError, TypeError, IndexError: fields that are missing or of another kind.
        """
        yield record

    def example(self, record: Record) -> Example:
        """A question, from the Hub's form.

        Raises:
            BrokenRecord, KeyError, TypeError: fields that are missing, of another kind, or an unknown label.
        """
        label = self.label_of(record)
        gold = () if label is None else (label,)
        return Example(self.idx_of(record), self.source(record), self.labels, gold, gold, pair=self.pair_of(record))

    def source(self, record: Record) -> Source:
        """What the model reads."""
        parts = [(name, f" {name}: {_text(record, key)}") for name, key in self.fields.items()]
        place = [name for name, _ in parts].index(self.passage)
        before = self.prefix + "".join(part for _, part in parts[:place])
        return Source(before, parts[place][1], "".join(part for _, part in parts[place + 1 :]))

    def idx_of(self, record: Record) -> tuple[int, ...]:
        """Its official number."""
        return (int(record["idx"]),)

    def pair_of(self, record: Record) -> int:
        """AX-g's pairs stand one behind the other, where they are not numbered."""
        return int(record.get("pair_id", int(record["idx"]) // 2)) if self.name == "axg" else -1

    def label_of(self, record: Record) -> str | None:
        """The right label as text; None in a split without.

        Raises:
            BrokenRecord: another one than there are.
        """
        label = record.get("label")
        if label is None or label == -1:
            return None
        if isinstance(label, int) and 0 <= label < len(self.labels):  # True and False are 1 and 0
            return self.labels[label]
        for known in self.labels:
            if isinstance(label, str) and label.strip().lower() == known.lower():
                return known
        raise BrokenRecord(f"the label is {label!r}; expected one of {', '.join(self.labels)}")

    def judge(self, example: Example, answer: str) -> Verdict:
        """What an answer means."""
        answer = answer.strip()
        return Verdict(example, answer, answer if answer in example.choices else None)

    def guesses(self, example: Example) -> tuple[str, ...]:
        """The answers that somebody could give who knows nothing of the question."""
        return example.choices

    def most_frequent(self, examples: Sequence[Example]) -> list[str]:
        """The answers of somebody who only knows which label is the most frequent of the examples."""
        counts = Counter(example.gold[0] for example in examples)
        return [counts.most_common(1)[0][0]] * len(examples)

    def submission(self, verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
        """The lines of the file to submit; an answer outside the label set becomes the first label."""
        for verdict in verdicts:
            label = verdict.prediction or self.labels[0]
            yield {"idx": verdict.example.idx[0], "label": self.submitted.get(label, label)}


def _text(record: Record, key: str) -> str:
    text = record[key]
    if not isinstance(text, str):
        raise BrokenRecord(f"the field {key!r} is {text!r}; expected text")
    return text
