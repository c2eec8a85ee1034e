"""Records out of files: plain text, JSON lines, JSON lists, Parquet, MediaWiki dumps, each resumable at any record."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from fivefold.corpus.bad_lines import BadLines
from fivefold.corpus.byte_stream import COMPRESSIONS, open_bytes
from fivefold.corpus.wiki import read_articles
from fivefold.errors import DataError

Record: TypeAlias = dict[str, Any]
Kind: TypeAlias = Literal["text", "json_lines", "json", "parquet", "wiki"]

KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "json_lines",
    ".ndjson": "json_lines",
    ".json": "json",
    ".parquet": "parquet",
    ".xml": "wiki",
}
READABLE = (
    ", ".join(KINDS) + f" (all but Parquet also with {' or '.join(COMPRESSIONS)} behind; XML is a MediaWiki dump)"
)

# What `fivefold prepare` says of a folder stands in it, beside the data.
REPORT_NAME = "prepare_report.json"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_BATCH_ROWS = 256
FIRST_BYTES = 1 << 12
JSON_CHUNK_CHARACTERS = 1 << 20
# An item of a JSON list that is longer than this is taken for a broken file, so that memory stays bounded.
JSON_ITEM_CHARACTERS = 1 << 26
BETWEEN_ITEMS = " \t\r\n,"


class Position(NamedTuple):
    """A place between two records of a file."""

    number: int = 0
    """Lines, list items or rows read so far; the last one's own number, counted from 1."""
    offset: int = 0
    """Decompressed bytes read so far, where the file is read by lines."""


def file_kind(path: Path) -> Kind | None:
    """What a file's name says it holds, or None if that is nothing readable."""
    # A large wiki's dump comes in parts with names such as pages-articles1.xml-p1p187712.bz2.
    suffixes = [suffix.lower().partition("-p")[0] for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        kind = KINDS.get(suffixes[-2]) if len(suffixes) > 1 else None
        return kind if kind != "parquet" else None
    return KINDS.get(suffixes[-1]) if suffixes else None


class FileReader:
    """The records of one file, from a position on.

    Args:
        path: the file.
        text_unit: what one record of a plain text file is: "line", "paragraph" or "file".
        text_field: the name under which plain text stands in its record.
        fields: columns that a Parquet file must have.
        bad_lines: told of each broken line.
        position: where to begin, as `position` gave it.
        left_out: counts what a file holds beside documents, by what it is.
        keep_markup: give texts of a dump as `Wikitext`, for whoever calls its `plain_text` later.
    """

    def __init__(
        self,
        path: Path,
        *,
        text_unit: str,
        text_field: str,
        fields: Sequence[str],
        bad_lines: BadLines,
        position: Sequence[int] = (),
        left_out: Counter[str] | None = None,
        keep_markup: bool = False,
    ) -> None:
        self.path = path
        self.text_unit = text_unit
        self.text_field = text_field
        self.fields = fields
        self.bad_lines = bad_lines
        self.left_out = Counter[str]() if left_out is None else left_out
        self.keep_markup = keep_markup
        self._position = Position(*position)
        self._counted = ":"
        self._tell: Callable[[], int] = lambda: 0

    @property
    def position(self) -> list[int]:
        """The place behind the record that was given last."""
        return list(self._position)

    @property
    def bytes_read(self) -> int:
        """How much of the file itself was read; stays 0 for Parquet."""
        try:
            return self._tell()
        except ValueError:  # the file is closed
            return self.path.stat().st_size

    def _watch(self, tell: Callable[[], int]) -> None:
        self._tell = tell

    @property
    def where(self) -> str:
        """The record that was given last, for a message."""
        return self._place(self._position.number)

    def _place(self, number: int) -> str:
        return f"{self.path}{self._counted}{number}"

    def __iter__(self) -> Iterator[Record]:
        kind = file_kind(self.path)
        if kind == "text":
            pairs = self._text_units()
        elif kind == "json_lines" or (kind == "json" and not self._holds_json_list()):
            pairs = self._json_lines()
        elif kind == "json":
            pairs = self._json_list()
        elif kind == "wiki":
            pairs = self._wiki_articles()
        else:
            pairs = self._parquet_rows()
        for record, position in pairs:
            self._position = position
            yield record

    def _lines(self) -> Iterator[tuple[str, Position]]:
        number, offset = self._position
        with open_bytes(self.path, offset, watch=self._watch) as stream:
            for raw in stream:
                number, start, offset = number + 1, offset, offset + len(raw)
                if start == 0:
                    raw = raw.removeprefix(BYTE_ORDER_MARK)
                try:
                    line = raw.decode("utf-8")
                except UnicodeDecodeError as error:
                    self.bad_lines.report(self._place(number), f"not UTF-8 (byte {error.start + 1} of the line)")
                    continue
                yield line.removesuffix("\n").removesuffix("\r"), Position(number, offset)

    def _text_units(self) -> Iterator[tuple[Record, Position]]:
        unit: list[str] = []
        position = self._position
        for line, position in self._lines():
            if self.text_unit == "line":
                yield {self.text_field: line}, position
            elif self.text_unit == "file" or line.strip():
                unit.append(line)
            elif unit:
                yield {self.text_field: "\n".join(unit)}, position
                unit = []
        if unit:
            yield {self.text_field: "\n".join(unit)}, position

    def _json_lines(self) -> Iterator[tuple[Record, Position]]:
        for line, position in self._lines():
            if not line.strip():
                continue
            where = self._place(position.number)
            try:
                record = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                self.bad_lines.report(where, f"not JSON ({error})")
                continue
            if isinstance(record, dict):
                yield record, position
            else:
                self.bad_lines.report(where, f"a JSON {type(record).__name__}, not an object with fields")

    def _holds_json_list(self) -> bool:
        with open_bytes(self.path) as stream:
            return stream.read(FIRST_BYTES).removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")

    def _json_list(self) -> Iterator[tuple[Record, Position]]:
        self._counted = ": item "
        for number, item in enumerate(self._json_items(), start=1):
            if number <= self._position.number:
                continue
            if isinstance(item, dict):
                yield item, Position(number)
            else:
                self.bad_lines.report(self._place(number), f"a JSON {type(item).__name__}, not an object with fields")

    def _json_items(self) -> Iterator[Any]:
        """Decode a JSON list item by item, holding one chunk of it, or one item if that is longer."""
        decode = json.JSONDecoder().raw_decode
        with open_bytes(self.path, watch=self._watch) as stream, TextIOWrapper(stream, encoding="utf-8-sig") as text:
            try:
                buffer = text.read(JSON_CHUNK_CHARACTERS).lstrip().removeprefix("[")
                start = 0
                while True:
                    while start < len(buffer) and buffer[start] in BETWEEN_ITEMS:
                        start += 1
                    if buffer.startswith("]", start):
                        return
                    try:
                        item, start = decode(buffer, start)
                    except (json.JSONDecodeError, RecursionError) as error:
                        more = text.read(JSON_CHUNK_CHARACTERS)
                        if not more or len(buffer) - start > JSON_ITEM_CHARACTERS:
                            raise DataError(
                                f"{self.path} is not a whole JSON list ({error}): mend it, or fetch it again."
                            ) from error
                        buffer, start = buffer[start:] + more, 0
                    else:
                        yield item
            except UnicodeDecodeError as error:
                raise DataError(f"{self.path} is not UTF-8 ({error}): convert it first.") from error

    def _wiki_articles(self) -> Iterator[tuple[Record, Position]]:
        self._counted = ": page "
        pages = read_articles(
            self.path, *self._position, bad_lines=self.bad_lines, left_out=self.left_out, watch=self._watch
        )
        for page in pages:
            text = page.markup if self.keep_markup else page.markup.plain_text()
            yield {"title": page.title, self.text_field: text}, Position(page.number, page.offset)

    def _parquet_rows(self) -> Iterator[tuple[Record, Position]]:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        self._counted = ": row "
        try:
            with ParquetFile(self.path) as file:
                columns = file.schema_arrow.names
                if missing := [field for field in self.fields if field not in columns]:
                    raise DataError(
                        f"{self.path} has no column {missing[0]!r}, only {', '.join(columns)}: "
                        "name the one with the text (--text_field)."
                    )
                number, end_of_group = 0, 0
                for group in range(file.num_row_groups):
                    end_of_group += file.metadata.row_group(group).num_rows
                    if end_of_group <= self._position.number:
                        number = end_of_group
                        continue
                    for batch in file.iter_batches(PARQUET_BATCH_ROWS, row_groups=[group]):
                        skip = min(max(self._position.number - number, 0), batch.num_rows)
                        number += skip
                        for record in batch.slice(skip).to_pylist():
                            number += 1
                            yield record, Position(number)
        except (ArrowException, OSError) as error:
            raise DataError(f"{self.path} cannot be read as Parquet ({error}): check it, or fetch it again.") from error
