"""Supervised pairs, what is read and what is learned, held in memory."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fivefold.data.examples import ExampleSource
from fivefold.data.rows import Rows, ragged_rows


class EncodedSource(ExampleSource):
    """Examples whose tokens are settled: the same in every epoch.

    Args:
        inputs: token ids of each input, end mark included.
        targets: labels of each.
        pad_id: the padding token of inputs.
        seed: the run's seed.
        shuffle: False keeps the given order, for evaluation.
        note: what they are, for `describe`.
    """

    def __init__(
        self,
        inputs: Sequence[NDArray],
        targets: Sequence[NDArray],
        *,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
        note: str = "",
    ):
        """Join each side into one flat array."""
        self._sides, self._note = (_joined(inputs), _joined(targets)), note
        lengths = np.stack([np.diff(starts) for _, starts in self._sides], 1)
        super().__init__(lengths, pad_id=pad_id, seed=seed, shuffle=shuffle)

    def describe(self) -> str:
        """What it holds, in half a line."""
        return self._note or f"{len(self.lengths):,} examples"

    def sides(self, examples: NDArray[np.int64], epochs: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, the same in every epoch."""
        inputs, targets = (_rows(side, examples) for side in self._sides)
        return inputs, targets


class PairSource(EncodedSource):
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
        """Cut each side and put an end mark behind it."""
        sides = ((prompts, input_length - 1), (responses, target_length - 1))
        self.num_cut_prompts, self.num_cut_responses = (
            sum(len(text) > most for text in texts) for texts, most in sides
        )
        cut = f"{self.num_cut_prompts:,} prompts and {self.num_cut_responses:,} responses cut"
        inputs, targets = ([np.append(text[:most], eos_id) for text in texts] for texts, most in sides)
        super().__init__(
            inputs, targets, pad_id=pad_id, seed=seed, shuffle=shuffle, note=f"{len(prompts):,} pairs, {cut}"
        )


def _joined(texts: Sequence[NDArray]) -> tuple[NDArray, NDArray]:
    """Texts end to end, with their starts."""
    starts = np.cumsum([0, *map(len, texts)])
    return np.concatenate([*texts, np.zeros(0, np.int32)]).astype(np.int32, copy=False), starts


def _rows(side: tuple[NDArray, NDArray], numbers: NDArray[np.int64]) -> Rows:
    flat, starts = side
    return ragged_rows(flat, starts[numbers], starts[numbers + 1] - starts[numbers])
