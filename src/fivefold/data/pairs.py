"""Supervised pairs, prompt in and response out, held in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.data.packing import pack
from fivefold.data.permutation import permuted
from fivefold.data.random_bits import Purpose, random_keys
from fivefold.data.rows import Rows, packed_batch, ragged_rows, seq2seq_batch, with_last
from fivefold.data.source import Source


class PairSource(Source):
    """Prompt and response pairs; an epoch visits each once, in a new random order every time.

    Args:
        prompts: token ids of each prompt, without end mark.
        responses: token ids of each response, without end mark.
        input_length: tokens of an input, end mark included; longer prompts lose their end.
        target_length: tokens of a target, end mark included; longer responses lose their end.
        eos_id: the end mark; it stays however much is cut off.
        pad_id: the padding token of inputs.
        seed: the run's seed.
        shuffle: False keeps the given order, for evaluation.
    """

    def __init__(
        self,
        prompts: Sequence[NDArray],
        responses: Sequence[NDArray],
        *,
        input_length: int,
        target_length: int,
        eos_id: int,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
    ):
        """Pack both sides into flat arrays."""
        self._prompts, self.num_cut_prompts = _packed(prompts, input_length - 1)
        self._responses, self.num_cut_responses = _packed(responses, target_length - 1)
        self._eos_id, self._pad_id, self._seed, self._shuffle = eos_id, pad_id, seed, shuffle
        self._num_pairs = self.samples_per_epoch = len(prompts)

    def describe(self) -> str:
        """What it holds, in half a line."""
        cut = f"{self.num_cut_prompts:,} prompts and {self.num_cut_responses:,} responses cut"
        return f"{self._num_pairs:,} pairs, {cut}"

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Pad the pairs of these numbers."""
        return seq2seq_batch(*self._sides(self._places(sample_ids)), self._pad_id)

    def _places(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the samples of these numbers are of an epoch's."""
        assert self.samples_per_epoch is not None
        epochs, places = np.divmod(sample_ids, self.samples_per_epoch)
        if not self._shuffle:
            return places
        return permuted(places, self.samples_per_epoch, random_keys(self._seed, Purpose.PERMUTATION, epochs))

    def _sides(self, pairs: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included."""
        inputs, targets = (with_last(_rows(side, pairs), self._eos_id) for side in (self._prompts, self._responses))
        return inputs, targets


class PackedPairSource(PairSource):
    """Pairs packed into rows, each of which is a sample; which go together is settled once, their order in every epoch.

    Arguments as `PairSource`'s, where `input_length` and `target_length` are those of a row, too.
    """

    def __init__(self, prompts: Sequence[NDArray], responses: Sequence[NDArray], **settings: Any):
        """Pack."""
        super().__init__(prompts, responses, **settings)
        lengths = np.stack([np.diff(starts) + 1 for _, starts in (self._prompts, self._responses)], 1)
        capacity = (settings["input_length"], settings["target_length"])
        rows = pack(lengths, capacity)
        # The pairs of a row stand one behind the other.
        self._pairs, self._counts = rows.argsort(kind="stable"), np.bincount(rows)
        self._first = self._counts.cumsum() - self._counts
        self.samples_per_epoch = len(self._counts)
        self._filled = lengths.sum(0) / (len(self._counts) * np.array(capacity))

    def describe(self) -> str:
        """What it holds, in half a line."""
        inputs, targets = self._filled
        rows = f"{self.samples_per_epoch:,} rows, {inputs:.0%} and {targets:.0%} full"
        return f"{super().describe()}; packed into {rows}"

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Line up the pairs of these rows."""
        rows = self._places(sample_ids)
        counts = self._counts[rows]
        members = ragged_rows(self._pairs, self._first[rows], counts)
        return packed_batch(*self._sides(members.ids[members.valid]), counts, self._pad_id)


def _packed(texts: Sequence[NDArray], max_length: int) -> tuple[tuple[NDArray, NDArray], int]:
    """Texts end to end with their starts, each cut to `max_length`, and how many were cut."""
    short = [np.asarray(text[:max_length], np.int32) for text in texts]
    starts = np.cumsum([0, *map(len, short)])
    return (np.concatenate([*short, np.zeros(0, np.int32)]), starts), sum(len(text) > max_length for text in texts)


def _rows(side: tuple[NDArray, NDArray], numbers: NDArray[np.int64]) -> Rows:
    flat, starts = side
    return ragged_rows(flat, starts[numbers], starts[numbers + 1] - starts[numbers])
