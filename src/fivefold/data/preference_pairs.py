"""Pairs of answers to one prompt, as rows in which the prompt stands once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.data.answer_rows import answer_rows
from fivefold.data.examples import EpochOrder
from fivefold.data.packing import pack
from fivefold.data.source import Source
from fivefold.tokenizer.chat_format import Family


@dataclass(frozen=True)
class TokenPairs:
    """Tokens of prompts and of a chosen and a rejected answer to each, all marks included."""

    prompts: list[NDArray[np.int32]]
    """Each at least 1 token."""
    chosen: list[NDArray[np.int32]]
    """Each at least 1 token."""
    rejected: list[NDArray[np.int32]]
    """Each at least 1 token."""

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def num_tokens(self) -> NDArray[np.int64]:
        """[P, 2] tokens of each answer, the chosen one first."""
        return np.stack([_lengths(self.chosen), _lengths(self.rejected)], 1)

    def row_lengths(self, family: Family) -> NDArray[np.int64]:
        """Positions that each pair takes: [P, 2] in a T5's inputs and targets, [P, 1] in a decoder's row."""
        prompts, answers = _lengths(self.prompts), self.num_tokens.sum(1)
        # A decoder's answers stand behind the last token of the prompt, and their own last tokens are not read.
        return np.stack([prompts, answers], 1) if family == "t5" else (prompts - 1 + answers)[:, None]


class PreferenceSource(Source):
    """Pairs, one to a row, or packed, in which case a sample is a row of several; an epoch visits each row once.

    Args:
        pairs: what to learn from.
        family: a T5 reads prompts in its encoder and writes answers in its decoder, a decoder does both in one row.
        pad_id: the padding token of inputs.
        seed: the run's seed.
        shuffle: False keeps the given order, for evaluation.
        capacity: positions of a row, as `TokenPairs.row_lengths` counts them, to pack pairs into; None does not pack.
        reference_logps: [P, 2] float32, the sums of log-probabilities under the reference, if the loss wants them.
    """

    def __init__(
        self,
        pairs: TokenPairs,
        family: Family,
        *,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
        capacity: tuple[int, ...] | None = None,
        reference_logps: NDArray[np.float32] | None = None,
    ):
        """Settle which pairs go together."""
        self._pairs, self._pad_id = pairs, pad_id
        self._answers = list(zip(pairs.chosen, pairs.rejected, strict=True))
        self._family: Family = family
        self._capacity, self._reference_logps = capacity, reference_logps
        self._num_tokens = pairs.num_tokens
        rows = np.arange(len(pairs)) if capacity is None else pack(pairs.row_lengths(family), capacity)
        self._members = np.split(rows.argsort(kind="stable"), np.bincount(rows).cumsum()[:-1])
        self._order = EpochOrder(len(self._members), seed, shuffle)
        self.samples_per_epoch = len(self._members)

    def describe(self) -> str:
        """What it holds, in half a line."""
        pairs = f"{len(self._pairs):,} pairs"
        if self._capacity is None:
            return pairs
        num_rows, room = len(self._members), " and ".join(f"{length:,}" for length in self._capacity)
        used = self._pairs.row_lengths(self._family).sum(0) / (num_rows * np.array(self._capacity))
        full = " and ".join(f"{share:.1%}" for share in used)
        return f"{pairs}, packed into {num_rows:,} rows of {room} tokens, {full} full"

    def pairs_of(self, sample_ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Which pairs stand in each of these rows, in the order in which `batch` has them."""
        _, rows = self._order.of(sample_ids)
        return [self._members[row] for row in rows]

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Lay out the pairs of these rows as `objectives.answer_logps` takes them.

        Returns:
            What `answer_rows` returns, `num_tokens` [P, 2] and, if there are any, `reference_logps` [P, 2], in which
            pairs stand as they do in the rows.
        """
        members = self.pairs_of(sample_ids)
        laid_out = answer_rows(self._pairs.prompts, self._answers, members, self._family, pad_id=self._pad_id)
        numbers = np.concatenate(members)
        laid_out["num_tokens"] = self._num_tokens[numbers]
        if self._reference_logps is not None:
            laid_out["reference_logps"] = self._reference_logps[numbers]
        return laid_out


def _lengths(sequences: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    return np.array([len(tokens) for tokens in sequences], np.int64)
