"""Shuffle documents in bounded memory."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


class DocumentShuffle:
    """Holds documents back up to a number of tokens and lets a random one go for each that comes in.

    Args:
        write: takes the documents in their new order.
        buffer_tokens: tokens to hold; 0 keeps the order. A corpus that fits is shuffled uniformly.
        seed: decides the order.
    """

    def __init__(self, write: Callable[[NDArray], None], buffer_tokens: int, seed: int):
        """Hold nothing yet."""
        self._write, self._buffer_tokens = write, buffer_tokens
        self._generator = np.random.default_rng(seed)
        self._held: list[NDArray] = []
        self._num_tokens = 0

    def add(self, document: NDArray) -> None:
        """Take one document in, and write as many as no longer fit."""
        self._held.append(document)
        self._num_tokens += len(document)
        while self._num_tokens > self._buffer_tokens:
            place = int(self._generator.integers(len(self._held)))
            self._held[place], self._held[-1] = self._held[-1], self._held[place]
            chosen = self._held.pop()
            self._num_tokens -= len(chosen)
            self._write(chosen)

    def finish(self) -> None:
        """Write all that is still held."""
        for place in self._generator.permutation(len(self._held)):
            self._write(self._held[place])
        self._held, self._num_tokens = [], 0
