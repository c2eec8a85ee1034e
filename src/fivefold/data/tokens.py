"""Token shards: a corpus as one long line of token ids in memory-mapped files, read at any place.

A folder holds `tokens_00000.bin` (little-endian uint16 or uint32), `documents_00000.npy` (where each document of
that shard starts, and the shard's end), and so on, and `index.json`. There is nothing between documents.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.data.rows import Rows
from fivefold.errors import DataError

INDEX_NAME = "index.json"
TRAIN, VALIDATION, TOKENIZER = "train", "validation", "tokenizer"
"""What a prepared folder holds: token shards to train on, the held-out ones, and the tokenizer that made them."""

_FORMAT = 1


@dataclass(frozen=True)
class ShardEntry:
    """What the index says of one shard."""

    tokens_file: str
    documents_file: str
    num_tokens: int
    num_documents: int
    sha256: str
    """Checksum of the tokens file."""


@dataclass(frozen=True)
class TokenIndex:
    """What a folder of token shards says of itself in `index.json`."""

    dtype: str
    """`<u2` or `<u4`."""
    num_tokens: int
    num_documents: int
    num_characters: int
    tokenizer_fingerprint: str
    sources: list[str]
    """What the documents were read from."""
    shards: list[ShardEntry]

    def save(self, folder: Path) -> None:
        """Write `index.json`."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, ensure_ascii=False, indent=1)
        (folder / INDEX_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "TokenIndex":
        """Read `index.json`.

        Raises:
            DataError: there is none, or it is not one of ours.
        """
        try:
            fields: dict[str, Any] = json.loads((folder / INDEX_NAME).read_text(encoding="utf-8"))
            version = fields.pop("format")
            shards = [ShardEntry(**entry) for entry in fields.pop("shards")]
            index = cls(**fields, shards=shards)
        except FileNotFoundError:
            raise DataError(f"{folder} holds no {INDEX_NAME}: make token shards with `fivefold prepare`.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{folder / INDEX_NAME} is not an index of token shards ({error}); run `fivefold prepare` again."
            ) from error
        if version != _FORMAT:
            raise DataError(
                f"{folder / INDEX_NAME} has format {version}, not {_FORMAT}; run `fivefold prepare` of this version."
            )
        return index


@dataclass(frozen=True)
class Shard:
    """Some documents end to end."""

    tokens: NDArray
    """[tokens] ids."""
    starts: NDArray
    """[documents + 1], where each document starts, and the end."""


class TokenShards:
    """All documents of some shards as one circle of tokens: whoever reads past the end reads on at the beginning.

    Args:
        shards: at least one token in all.
        eos_id: an end mark to put after every document, as corpora made for Hugging Face's T5 scripts have it;
            None, as in T5's own preprocessing, puts nothing between documents.
    """

    def __init__(self, shards: Sequence[Shard], eos_id: int | None = None):
        """Line the shards up."""
        self._shards, self._eos_id = shards, eos_id
        marks_each = 0 if eos_id is None else 1
        self._ends = np.cumsum([len(shard.tokens) + marks_each * (len(shard.starts) - 1) for shard in shards])
        self.num_tokens = int(self._ends[-1]) if len(shards) else 0
        self.num_documents = sum(len(shard.starts) - 1 for shard in shards)

    @classmethod
    def open(cls, folder: Path | str, eos_id: int | None = None) -> "TokenShards":
        """Map the shards of a folder that `fivefold prepare` wrote.

        Raises:
            DataError: no index, a missing or truncated shard, or no tokens.
        """
        folder = Path(folder)
        index = TokenIndex.load(folder)
        if not index.num_tokens:
            raise DataError(f"{folder} holds no tokens: prepare it again from documents that are not empty.")
        return cls([_open_shard(folder, entry, index.dtype) for entry in index.shards], eos_id)

    @classmethod
    def of_documents(cls, documents: Iterable[NDArray], eos_id: int | None = None) -> "TokenShards":
        """Hold documents in memory, each given as its token ids."""
        documents = list(documents)
        starts = np.cumsum([0, *map(len, documents)])
        return cls([Shard(np.concatenate([*documents, np.zeros(0, np.int64)]), starts)], eos_id)

    def documents(self) -> Iterator[NDArray]:
        """The token ids of each document, in stored order."""
        for shard in self._shards:
            for start, end in pairwise(shard.starts):
                yield shard.tokens[start:end]

    def document_borders(self) -> NDArray[np.int64]:
        """[documents + 1], where each document starts, and the end; an end mark belongs to the document before it."""
        marks_each = 0 if self._eos_id is None else 1
        borders, before = [], 0
        for shard, end in zip(self._shards, self._ends, strict=True):
            borders.append(before + shard.starts[:-1] + marks_each * np.arange(len(shard.starts) - 1))
            before = end
        return np.concatenate([*borders, [before]]).astype(np.int64)

    def windows(self, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
        """Read B windows at once, across shards and around the end.

        Args:
            starts: [B] first position of each window.
            lengths: [B] tokens in each.

        Returns:
            B rows of int64 ids.
        """
        positions = (starts[:, None] + np.arange(lengths.max())) % self.num_tokens
        numbers = np.searchsorted(self._ends, positions, side="right")
        ids = np.empty(positions.shape, np.int64)
        for number in np.unique(numbers):
            here = numbers == number
            shard_start = self._ends[number - 1] if number else 0
            ids[here] = self._read(self._shards[number], positions[here] - shard_start)
        return Rows(ids, lengths)

    def _read(self, shard: Shard, positions: NDArray[np.int64]) -> NDArray:
        if self._eos_id is None:
            return shard.tokens[positions]
        # With one mark after each document, document d starts d places later than it does in the file.
        marked_starts = shard.starts + np.arange(len(shard.starts))
        documents = np.searchsorted(marked_starts, positions, side="right") - 1
        is_mark = positions == marked_starts[documents + 1] - 1
        return np.where(is_mark, self._eos_id, shard.tokens[np.minimum(positions - documents, len(shard.tokens) - 1)])


def _open_shard(folder: Path, entry: ShardEntry, dtype: str) -> Shard:
    tokens_path, documents_path = folder / entry.tokens_file, folder / entry.documents_file
    for path in (tokens_path, documents_path):
        if not path.is_file():
            raise DataError(f"{path} is missing; copy the folder again or run `fivefold prepare` again.")
    expected_bytes = entry.num_tokens * np.dtype(dtype).itemsize
    if tokens_path.stat().st_size != expected_bytes:
        raise DataError(
            f"{tokens_path} has {tokens_path.stat().st_size:,} bytes where the index says {expected_bytes:,}; "
            "copy the folder again or run `fivefold prepare` again."
        )
    try:
        starts = np.load(documents_path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        raise DataError(f"{documents_path} is damaged ({error}); run `fivefold prepare` again.") from error
    if starts.shape != (entry.num_documents + 1,) or starts[-1] != entry.num_tokens:
        raise DataError(
            f"{documents_path} does not fit the index; copy the folder again or run `fivefold prepare` again."
        )
    # A plain array over the map: indexing a memmap itself is slower.
    return Shard(np.asarray(np.memmap(tokens_path, dtype, mode="r")), np.asarray(starts))
