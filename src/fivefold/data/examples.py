"""Training data made of whole examples, each with an input and a target of its own: one a row and padded, or packed."""

from abc import abstractmethod
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fivefold.data.packing import pack
from fivefold.data.permutation import permuted
from fivefold.data.random_bits import Purpose, random_keys
from fivefold.data.rows import Rows, packed_batch, ragged_rows, seq2seq_batch
from fivefold.data.source import Source


@dataclass(frozen=True)
class EpochOrder:
    """In which order a run visits what it has: each once an epoch, in a new random order every time."""

    num_visits: int
    """In an epoch."""
    seed: int
    shuffle: bool
    """False keeps the given order."""

    def of(self, sample_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch of each sample, [B], and which of the things visited in an epoch it is, [B]."""
        epochs, places = np.divmod(sample_ids, self.num_visits)
        if not self.shuffle:
            return epochs, places
        return epochs, permuted(places, self.num_visits, random_keys(self.seed, Purpose.PERMUTATION, epochs))


class ExampleSource(Source):
    """Examples, each of which is a sample; an epoch visits each once, in a new random order every time.

    Args:
        lengths: [E, 2] tokens of each example's input and target, end marks included.
        pad_id: the padding token of inputs.
        seed: the run's seed.
        shuffle: False keeps the given order, for evaluation.
    """

    def __init__(self, lengths: NDArray[np.int64], *, pad_id: int, seed: int, shuffle: bool = True):
        """Note the lengths."""
        self.lengths, self.pad_id = lengths, pad_id
        self.order = EpochOrder(len(lengths), seed, shuffle)
        self.samples_per_epoch = len(lengths)

    @abstractmethod
    def sides(self, examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included.

        Args:
            examples: [B] which of the E.
            epochs: [B] the epoch that each is visited in, which decides its noise, if it has any.
        """

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Pad the examples of these numbers."""
        epochs, examples = self.order.of(sample_ids)
        return seq2seq_batch(*self.sides(examples, epochs), self.pad_id)


class PackedSource(Source):
    """The same examples packed into rows, each of which is a sample.

    Which examples go together is settled once; an epoch visits each row once, in a new random order every time.

    Args:
        examples: they bring the seed and the padding, too.
        capacity: tokens of a row's inputs and of its targets.
    """

    def __init__(self, examples: ExampleSource, capacity: tuple[int, int]):
        """Pack."""
        rows = pack(examples.lengths, capacity)
        self._examples, self._capacity = examples, capacity
        # The examples of a row stand one behind the other.
        self._members, self._counts = rows.argsort(kind="stable"), np.bincount(rows)
        self._first = self._counts.cumsum() - self._counts
        self._order = replace(examples.order, num_visits=len(self._counts))
        self.samples_per_epoch = len(self._counts)

    def describe(self) -> str:
        """What it holds, in half a line."""
        num_rows, capacity = len(self._counts), self._capacity
        inputs, targets = self._examples.lengths.sum(0) / (num_rows * np.array(capacity))
        rows = f"{num_rows:,} rows of {capacity[0]:,} and {capacity[1]:,} tokens"
        return f"{self._examples.describe()}, packed into {rows}, {inputs:.1%} and {targets:.1%} full"

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Line up the examples of these rows."""
        epochs, rows = self._order.of(sample_ids)
        counts = self._counts[rows]
        members = ragged_rows(self._members, self._first[rows], counts)
        sides = self._examples.sides(members.ids[members.valid], np.repeat(epochs, counts))
        return packed_batch(*sides, counts, self._examples.pad_id)
