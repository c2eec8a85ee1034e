"""Self-supervised samples from token shards: windows on a grid, visited in a new random order every epoch."""

import numpy as np
from numpy.typing import NDArray

from fivefold.data.corruption import Corruption
from fivefold.data.permutation import permuted
from fivefold.data.random_bits import Purpose, random_below, random_keys
from fivefold.data.rows import seq2seq_batch
from fivefold.data.source import Source
from fivefold.data.tokens import TokenShards


class WindowSource(Source):
    """Each kind of sample walks the circle of tokens in windows of its own length; an epoch visits each window once.

    The windows of an epoch tile the circle exactly, the last one being shorter. With `shuffle`, every epoch has a
    new random order and a new first position, so that window borders do not always cut the same sentences; without,
    epochs are alike and in order.

    Args:
        tokens: the corpus.
        corruption: what becomes of a window.
        pad_id: the padding token of inputs.
        seed: the run's seed.
        shuffle: see above; evaluation goes without.
    """

    def __init__(self, tokens: TokenShards, corruption: Corruption, *, pad_id: int, seed: int, shuffle: bool = True):
        """Lay the grids."""
        self._tokens, self._corruption = tokens, corruption
        self._pad_id, self._seed, self._shuffle = pad_id, seed, shuffle
        self._windows_per_epoch = -(-tokens.num_tokens // corruption.window_lengths)
        num_kinds = len(corruption.window_lengths)
        # One sample of each kind takes the sum of the lengths; as many of them as there are in the corpus make an
        # epoch.
        self.samples_per_epoch = max(-(-tokens.num_tokens * num_kinds // int(corruption.window_lengths.sum())), 1)

    def describe(self) -> str:
        """What it holds, in half a line."""
        tokens = self._tokens
        return f"{tokens.num_documents:,} documents, {tokens.num_tokens:,} tokens, {self.samples_per_epoch:,} samples"

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Read, corrupt and pad the samples of these numbers."""
        rows = self._tokens.windows(*self.places(sample_ids))
        inputs, targets = self._corruption.corrupted(rows, sample_ids)
        return seq2seq_batch(inputs, targets, self._pad_id)

    def places(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where each sample's window starts, [B], and how many tokens it has, [B]."""
        kinds = self._corruption.kinds(sample_ids)
        window_lengths, num_windows = self._corruption.window_lengths[kinds], self._windows_per_epoch[kinds]
        epochs, windows = np.divmod(sample_ids // len(self._windows_per_epoch), num_windows)
        first = np.zeros_like(sample_ids)
        if self._shuffle:
            windows = permuted(windows, num_windows, random_keys(self._seed, Purpose.PERMUTATION, epochs, kinds))
            first = random_below(random_keys(self._seed, Purpose.GRID_OFFSET, epochs, kinds), self._tokens.num_tokens)
        starts = windows * window_lengths
        return (first + starts) % self._tokens.num_tokens, np.minimum(window_lengths, self._tokens.num_tokens - starts)
