"""Pairs of answers to one prompt, as rows in which the prompt stands once."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.data.examples import EpochOrder
from fivefold.data.packing import pack
from fivefold.data.rows import IGNORED_LABEL, Rows, rectangle, unflattened
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
            `input_ids`, `segments`, `labels`, `answers` and for decoders `position_ids`, all int64; `num_tokens` [P, 2]
            and, if there are any, `reference_logps` [P, 2], in which pairs stand as they do in the rows.
        """
        members = self.pairs_of(sample_ids)
        laid_out = self._encoder_and_decoder(members) if self._family == "t5" else self._one_row(members)
        numbers = np.concatenate(members)
        laid_out["num_tokens"] = self._num_tokens[numbers]
        if self._reference_logps is not None:
            laid_out["reference_logps"] = self._reference_logps[numbers]
        return laid_out

    def _encoder_and_decoder(self, members: list[NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        pairs, number = self._pairs, 0
        rows = _GrowingRows("input_ids", "segments", "labels", "answers")
        for row in members:
            rows.begin()
            for member in row:
                number += 1
                prompt = pairs.prompts[member]
                rows.extend(input_ids=prompt, segments=np.full(len(prompt), number))
                for place, answer in enumerate((pairs.chosen[member], pairs.rejected[member])):
                    rows.extend(labels=answer, answers=np.full(len(answer), 2 * number - 1 + place))
        return rows.padded(input_ids=self._pad_id, labels=IGNORED_LABEL)

    def _one_row(self, members: list[NDArray[np.int64]]) -> dict[str, NDArray[Any]]:
        pairs, number = self._pairs, 0
        rows = _GrowingRows("input_ids", "segments", "labels", "answers", "position_ids")
        for row in members:
            rows.begin()
            for member in row:
                number += 1
                prompt, last = np.split(pairs.prompts[member], [-1])
                begin = len(prompt)
                rows.extend(
                    input_ids=prompt,
                    segments=np.full(begin, number),
                    labels=np.full(begin, IGNORED_LABEL),
                    answers=np.zeros(begin),
                    position_ids=np.arange(begin),
                )
                for place, answer in enumerate((pairs.chosen[member], pairs.rejected[member])):
                    rows.extend(
                        input_ids=np.concatenate([last, answer[:-1]]),
                        segments=np.full(len(answer), number),
                        labels=answer,
                        answers=np.full(len(answer), 2 * number - 1 + place),
                        position_ids=np.arange(begin, begin + len(answer)),
                    )
        return rows.padded(input_ids=self._pad_id, labels=IGNORED_LABEL)


class _GrowingRows:
    """Rows of several arrays that grow piece by piece."""

    def __init__(self, *names: str):
        self._rows: dict[str, list[list[NDArray]]] = {name: [] for name in names}

    def begin(self) -> None:
        for rows in self._rows.values():
            rows.append([])

    def extend(self, **pieces: NDArray) -> None:
        for name, piece in pieces.items():
            self._rows[name][-1].append(piece)

    def padded(self, **fills: int) -> dict[str, NDArray[Any]]:
        """A rectangle of each, padded with 0 where nothing else is said."""
        padded = {}
        for name, rows in self._rows.items():
            lengths = np.array([sum(map(len, row)) for row in rows])
            flat = np.concatenate([piece for row in rows for piece in row]).astype(np.int64)
            padded[name] = rectangle(unflattened(flat, lengths), fills.get(name, 0))
        return padded


def _lengths(sequences: list[NDArray[np.int32]]) -> NDArray[np.int64]:
    return np.array([len(tokens) for tokens in sequences], np.int64)
