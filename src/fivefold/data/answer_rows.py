"""Rows in which a prompt stands once, with all its answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.data.rows import IGNORED_LABEL, rectangle, unflattened
from fivefold.tokenizer.chat_format import Family


def answer_rows(
    prompts: Sequence[NDArray],
    answers: Sequence[Sequence[NDArray]],
    members: Sequence[Sequence[int] | NDArray],
    family: Family,
    *,
    pad_id: int,
) -> dict[str, NDArray[Any]]:
    """Lay out prompts and their answers as `objectives.answer_logps` takes them.

    Args:
        prompts: tokens of each, at least 1.
        answers: to each, tokens of each, at least 1.
        members: the prompts that stand in each row.
        family: a T5 reads prompts in its encoder and writes answers in its decoder, a decoder does both in one row.
        pad_id: the padding token of inputs.

    Returns:
        `input_ids`, `segments`, `labels`, `answers`, and `memory_segments` for a T5 or `position_ids` for a decoder,
        all int64. Prompts are numbered from 1 in the order of the rows, and so are answers.
    """
    lay_out = _encoder_and_decoder if family == "t5" else _one_row
    return lay_out(prompts, answers, members, pad_id)


def _encoder_and_decoder(
    prompts: Sequence[NDArray], answers: Sequence[Sequence[NDArray]], members: Sequence[Any], pad_id: int
) -> dict[str, NDArray[Any]]:
    number = answered = 0
    rows = _GrowingRows("input_ids", "segments", "labels", "answers", "memory_segments")
    for row in members:
        rows.begin()
        for member in row:
            number += 1
            prompt = prompts[member]
            rows.extend(input_ids=prompt, segments=np.full(len(prompt), number))
            for answer in answers[member]:
                answered += 1
                marks = {"answers": answered, "memory_segments": number}
                rows.extend(labels=answer, **{name: np.full(len(answer), mark) for name, mark in marks.items()})
    return rows.padded(input_ids=pad_id, labels=IGNORED_LABEL)


def _one_row(
    prompts: Sequence[NDArray], answers: Sequence[Sequence[NDArray]], members: Sequence[Any], pad_id: int
) -> dict[str, NDArray[Any]]:
    number = answered = 0
    rows = _GrowingRows("input_ids", "segments", "labels", "answers", "position_ids")
    for row in members:
        rows.begin()
        for member in row:
            number += 1
            # An answer stands where it is predicted: behind the last token of the prompt, its own last one unread.
            prompt, last = np.split(prompts[member], [-1])
            begin = len(prompt)
            rows.extend(
                input_ids=prompt,
                segments=np.full(begin, number),
                labels=np.full(begin, IGNORED_LABEL),
                answers=np.zeros(begin),
                position_ids=np.arange(begin),
            )
            for answer in answers[member]:
                answered += 1
                rows.extend(
                    input_ids=np.concatenate([last, answer[:-1]]),
                    segments=np.full(len(answer), number),
                    labels=answer,
                    answers=np.full(len(answer), answered),
                    position_ids=np.arange(begin, begin + len(answer)),
                )
    return rows.padded(input_ids=pad_id, labels=IGNORED_LABEL)


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
