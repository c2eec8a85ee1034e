"""Self-supervised samples from documents one by one, for packing: nothing of a document is seen by another."""

import numpy as np
from numpy.typing import NDArray

from fivefold.data.corruption import SpanCorruption
from fivefold.data.examples import ExampleSource
from fivefold.data.rows import Rows
from fivefold.data.tokens import TokenShards


class DocumentSource(ExampleSource):
    """Documents, each corrupted by itself, with sentinels that begin anew and an end mark of its own.

    A document longer than the window of its denoiser is cut into windows, the last one being shorter. In an epoch each
    document meets each denoiser once: UL2's mixture of seven goes through the documents seven times.

    Args:
        tokens: the corpus.
        corruption: what becomes of a document.
        pad_id: the padding token of inputs.
        seed: the run's seed.
        shuffle: False keeps the order of the documents, for evaluation.
    """

    def __init__(
        self, tokens: TokenShards, corruption: SpanCorruption, *, pad_id: int, seed: int, shuffle: bool = True
    ):
        """Cut what is too long."""
        self._tokens, self._corruption = tokens, corruption
        borders = tokens.document_borders()
        num_kinds = len(corruption.window_lengths)
        # In each of the turns through the documents neighbours meet different denoisers.
        kinds = (np.arange(num_kinds)[:, None] + np.arange(len(borders) - 1)).ravel() % num_kinds
        starts, ends = np.tile(borders[:-1], num_kinds), np.tile(borders[1:], num_kinds)
        num_windows = -(-(ends - starts) // corruption.window_lengths[kinds])
        of_document = np.repeat(np.arange(len(kinds)), num_windows)
        windows_before = np.arange(len(of_document)) - np.repeat(num_windows.cumsum() - num_windows, num_windows)
        self._kinds = kinds[of_document]
        window_lengths = corruption.window_lengths[self._kinds]
        self._starts = starts[of_document] + windows_before * window_lengths
        self._lengths = np.minimum(window_lengths, ends[of_document] - self._starts)
        super().__init__(corruption.lengths(self._lengths, self._kinds), pad_id=pad_id, seed=seed, shuffle=shuffle)

    def describe(self) -> str:
        """What it holds, in half a line."""
        tokens = self._tokens
        return f"{tokens.num_documents:,} documents, {tokens.num_tokens:,} tokens, {len(self.lengths):,} examples"

    def sides(self, examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included, with new noise in every epoch."""
        rows = self._tokens.windows(self._starts[examples], self._lengths[examples])
        numbers = epochs * len(self.lengths) + examples
        return self._corruption.corrupted(rows, numbers, self._kinds[examples])
