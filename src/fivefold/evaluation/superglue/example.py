"""What a task asks, and what became of the answer."""

from dataclasses import dataclass
from typing import NamedTuple


class Source(NamedTuple):
    """The text that a model reads, in the order of the fields."""

    before: str
    passage: str
    """What may lose its end where the whole is too long for the model; the question never does."""
    after: str = ""

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self)


@dataclass(frozen=True)
class Example:
    """One question to the model."""

    idx: tuple[int, ...]
    """Its official number: one, or passage, question and answer (MultiRC), or passage and query (ReCoRD)."""
    source: Source
    choices: tuple[str, ...] = ()
    """The answers that there are; none where any text is one."""
    gold: tuple[str, ...] = ()
    """Right answers, any of which will do; none in a split without labels."""
    targets: tuple[str, ...] = ()
    """What to learn to write for it: mostly the right answer; none where it teaches nothing."""
    referent: str = ""
    """WSC: what the pronoun may stand for."""
    pair: int = -1
    """AX-g: of which pair of sentences that differ in a pronoun's gender."""


@dataclass(frozen=True)
class Verdict:
    """An example with the model's answer."""

    example: Example
    answer: str
    """As the model wrote it, or the likeliest choice."""
    prediction: str | None
    """What it means; None for an answer outside the label set."""

    @property
    def is_right(self) -> bool:
        """Whether it is one of the right ones, letter by letter."""
        return self.prediction in self.example.gold
