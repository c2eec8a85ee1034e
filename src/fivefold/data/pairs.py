"""Supervised pairs, prompt in and response out, held in memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fivefold.data.examples import ExampleSource
from fivefold.data.rows import Rows, ragged_rows, with_last


class PairSource(ExampleSource):
    """Prompt and response pairs.

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
        """Join each side into one flat array."""
        self._prompts, self.num_cut_prompts = _joined(prompts, input_length - 1)
        self._responses, self.num_cut_responses = _joined(responses, target_length - 1)
        self._eos_id = eos_id
        lengths = np.stack([np.diff(starts) + 1 for _, starts in (self._prompts, self._responses)], 1)
        super().__init__(lengths, pad_id=pad_id, seed=seed, shuffle=shuffle)

    def describe(self) -> str:
        """What it holds, in half a line."""
        cut = f"{self.num_cut_prompts:,} prompts and {self.num_cut_responses:,} responses cut"
        return f"{len(self.lengths):,} pairs, {cut}"

    def sides(self, examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included, the same in every epoch."""
        inputs, targets = (with_last(_rows(side, examples), self._eos_id) for side in (self._prompts, self._responses))
        return inputs, targets


def _joined(texts: Sequence[NDArray], max_length: int) -> tuple[tuple[NDArray, NDArray], int]:
    """Texts end to end with their starts, each cut to `max_length`, and how many were cut."""
    short = [np.asarray(text[:max_length], np.int32) for text in texts]
    starts = np.cumsum([0, *map(len, short)])
    return (np.concatenate([*short, np.zeros(0, np.int32)]), starts), sum(len(text) > max_length for text in texts)


def _rows(side: tuple[NDArray, NDArray], numbers: NDArray[np.int64]) -> Rows:
    flat, starts = side
    return ragged_rows(flat, starts[numbers], starts[numbers + 1] - starts[numbers])
