"""Write documents as token shards, one after the other."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fivefold.data.tokens import ShardEntry, TokenIndex


class TokenWriter:
    """Fills a folder with shards; `finish` writes the index that makes it readable.

    Args:
        folder: an existing, empty folder.
        vocab_size: ids are below it; up to 65,536 they take 2 bytes each, else 4.
        tokens_per_shard: a shard is closed by the document that reaches this size, so documents are never cut.
    """

    def __init__(self, folder: Path, vocab_size: int, tokens_per_shard: int):
        """Nothing is written before the first document."""
        self._folder, self._tokens_per_shard = folder, tokens_per_shard
        self.dtype = "<u2" if vocab_size <= 2**16 else "<u4"
        self._entries: list[ShardEntry] = []
        self._file: BinaryIO | None = None
        self._starts, self._checksum = [0], hashlib.sha256()

    def add(self, ids: NDArray | Sequence[int]) -> None:
        """Append one document."""
        if self._file is None:
            self._file = (self._folder / f"tokens_{len(self._entries):05d}.bin").open("wb")
        document = np.asarray(ids).astype(self.dtype).tobytes()
        self._file.write(document)
        self._checksum.update(document)
        self._starts.append(self._starts[-1] + len(ids))
        if self._starts[-1] >= self._tokens_per_shard:
            self._close_shard()

    def close(self) -> None:
        """Let go of the open file, if writing was broken off."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _close_shard(self) -> None:
        if self._file is None:
            return
        self.close()
        number = len(self._entries)
        documents_file = f"documents_{number:05d}.npy"
        np.save(self._folder / documents_file, np.array(self._starts, np.int64))
        self._entries.append(
            ShardEntry(
                f"tokens_{number:05d}.bin",
                documents_file,
                self._starts[-1],
                len(self._starts) - 1,
                self._checksum.hexdigest(),
            )
        )
        self._starts, self._checksum = [0], hashlib.sha256()

    def finish(self, *, num_characters: int, tokenizer_fingerprint: str, sources: list[str]) -> TokenIndex:
        """Close the last shard and write the index."""
        self._close_shard()
        index = TokenIndex(
            dtype=self.dtype,
            num_tokens=sum(entry.num_tokens for entry in self._entries),
            num_documents=sum(entry.num_documents for entry in self._entries),
            num_characters=num_characters,
            tokenizer_fingerprint=tokenizer_fingerprint,
            sources=sources,
            shards=self._entries,
        )
        index.save(self._folder)
        return index
