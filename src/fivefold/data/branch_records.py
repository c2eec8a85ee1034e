"""Records with a main text and the texts that go on from it, or with a single text."""

from typing import Any, NamedTuple

from fivefold.corpus.bad_lines import BadRecord
from fivefold.corpus.files import Record
from fivefold.corpus.read import Corpus, open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.record_shapes import Shape, ShapeReader, has

BRANCHED = "branched"
"""The field of a converted record that holds its `BranchedText`."""


class BranchText(NamedTuple):
    """A text that goes on from a main text."""

    text: str
    answer_offset: int = 0
    """Characters at its beginning that are read and not learned."""


class BranchedText(NamedTuple):
    """A main text and its branches."""

    main: str | None
    """None for a single text, which others may stand beside."""
    branches: list[BranchText]


def open_branches(settings: CorpusSettings) -> Corpus:
    """The records that `--data` names, each {"branched": BranchedText}; what cannot be used is a bad line.

    A record has `main` and `branches`, a list of texts or of {"text", "answer_offset"}, or it has a text alone.

    Raises:
        ConfigError, DataError: nothing named, or something that cannot be found, fetched or read.
    """
    name = settings.text_field
    shapes = (
        Shape("main and branches", "main, branches", lambda record: has(record, "main", "branches"), _read_branches),
        Shape("single texts", name, lambda record: name in record, lambda record: _read_text(record, name)),
    )
    return open_corpus(settings, (), ShapeReader(shapes, "main text with branches"))


def _read_branches(record: Record) -> Record:
    main, branches = record["main"], record["branches"]
    if not isinstance(main, str):
        raise BadRecord(f"main holds a {type(main).__name__}, not text")
    if not isinstance(branches, list) or not branches:
        raise BadRecord("branches is no list of texts" if branches else "there is no branch")
    return {BRANCHED: BranchedText(main, [_branch(branch, number) for number, branch in enumerate(branches, 1)])}


def _branch(branch: Any, number: int) -> BranchText:
    fields = branch if isinstance(branch, dict) else {"text": branch}
    text, offset = fields.get("text", fields.get("content")), fields.get("answer_offset", 0)
    if not isinstance(text, str):
        raise BadRecord(f"branch {number} is neither text nor an object with a text")
    if not text.strip():
        raise BadRecord(f"branch {number} is empty")
    if type(offset) is not int or not 0 <= offset <= len(text):
        raise BadRecord(f"answer_offset {offset!r} of branch {number} is no place among its {len(text)} characters")
    return BranchText(text, offset)


def _read_text(record: Record, name: str) -> Record:
    text = record[name]
    if not isinstance(text, str) or not text.strip():
        raise BadRecord(f"field {name!r} holds no text")
    return {BRANCHED: BranchedText(None, [BranchText(text)])}
