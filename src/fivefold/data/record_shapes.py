"""Which of several known shapes the records of a file have: told by their fields, the same for all of a file."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fivefold.choices import refuse_changed
from fivefold.corpus.bad_lines import BadRecord
from fivefold.corpus.files import Record
from fivefold.corpus.settings import CorpusSettings

log = logging.getLogger("fivefold")


@dataclass(frozen=True)
class Shape:
    """A way of writing something down in a record."""

    name: str
    """How people call it."""
    fields: str
    """The fields that it has, for a message."""
    fits: Callable[[Record], bool]
    """Whether a record has them; what they hold is not looked at, unless other shapes have the same ones."""
    read: Callable[[Record], Record]
    """What such a record says.

    Raises:
        BadRecord: nothing that can be used.
    """


def check_record_settings(settings: CorpusSettings) -> None:
    """Refuse what names the parts of plain text, where records tell by their fields what they are.

    Raises:
        ConfigError: one of these settings was changed.
    """
    refuse_changed(settings, ("text_field", "text_unit"), "with conversations, which are told by their fields")


class ShapeReader:
    """Reads records of any of some shapes; the first record of known shape settles that of its whole file.

    A record of another shape in the same file, or of none, is a bad one: a file that mixes shapes is more likely broken
    than meant so, and which of two shapes a record has would be a guess.

    Args:
        shapes: tried in this order.
        what: what they hold, for messages.
    """

    def __init__(self, shapes: Sequence[Shape], what: str) -> None:
        self._shapes, self._what = shapes, what
        self._said: set[str] = set()
        self._shape: Shape | None = None
        self._name = ""

    def begin(self, name: str) -> None:
        """Expect records of another file."""
        self._name, self._shape = name, None

    def __call__(self, record: Record) -> Record:
        """What the record says, as its shape has it.

        Raises:
            BadRecord: of no known shape, of another one than the file's, or nothing that can be used.
        """
        shape = next((shape for shape in self._shapes if shape.fits(record)), None)
        if shape is None:
            known = "; ".join(f"{shape.name} ({shape.fields})" for shape in self._shapes)
            raise BadRecord(f"the columns {_fields(record)} are no {self._what}; expected {known}")
        if self._shape is None:
            self._shape = shape
            if shape.name not in self._said:
                self._said.add(shape.name)
                log.info("data    %s: %s (%s)", self._name, shape.name, ", ".join(record))
        if shape is not self._shape:
            raise BadRecord(
                f"the columns {_fields(record)} are {shape.name}, but the file began as {self._shape.name}; give each "
                "shape a file of its own"
            )
        return shape.read(record)


def _fields(record: Record) -> str:
    return ", ".join(map(repr, record)) or "of an empty record"


def has(record: Record, *names: str) -> bool:
    """Whether a record has all of some fields."""
    return all(name in record for name in names)


def first_of(record: Record, names: Sequence[str]) -> str | None:
    """The first of some fields that a record has."""
    return next((name for name in names if name in record), None)
