"""Right-padded ragged rows: a rectangle of ids and how many of each row are real."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IGNORED_LABEL = -100


class Rows(NamedTuple):
    """B sequences of different lengths in one array; what lies beyond a row's length means nothing."""

    ids: NDArray
    """[B, L] whole numbers."""
    lengths: NDArray[np.int64]
    """[B], each at most L."""

    @property
    def valid(self) -> NDArray[np.bool_]:
        """[B, L], true where a token is real."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]


def marked_stretches(rows: Rows, starts: NDArray, lengths: NDArray, marks: NDArray, num_stretches: NDArray) -> Rows:
    """Cut stretches out of each row and line them up, with a mark behind each.

    Args:
        rows: B rows.
        starts: [B, S], where each stretch starts in its row.
        lengths: [B, S] tokens in each stretch, 0 or more.
        marks: [B, S] token put behind each stretch.
        num_stretches: [B], how many of the S a row has.

    Returns:
        B rows of the sum of a row's stretches and marks.
    """
    used = np.arange(starts.shape[1]) < num_stretches[:, None]
    counts = np.where(used, lengths + 1, 0)
    ends = counts.ravel().cumsum().reshape(counts.shape)
    # What stands at place p of the result comes from place p + shift of the rows.
    shifts = starts + np.arange(len(starts))[:, None] * rows.ids.shape[1] - (ends - counts)
    sources = np.repeat(shifts.ravel(), counts.ravel())
    sources += np.arange(len(sources))
    # A mark's own source is the token behind its stretch, which behind the last row does not exist: hence "clip".
    flat = rows.ids.ravel().take(sources, mode="clip").astype(np.int64, copy=False)
    flat[ends[used] - 1] = marks[used]
    return unflattened(flat, counts.sum(axis=1))


def unflattened(flat: NDArray[np.int64], lengths: NDArray[np.int64]) -> Rows:
    """Lay rows that stand one behind the other under each other.

    Args:
        flat: [sum of lengths].
        lengths: [B].
    """
    width = int(lengths.max())
    if (lengths == width).all():
        return Rows(flat.reshape(len(lengths), width), lengths)
    rows = Rows(np.zeros((len(lengths), width), np.int64), lengths)
    rows.ids[rows.valid] = flat  # the mask runs row by row, as the flat ids do
    return rows


def with_last(rows: Rows, token_id: int) -> Rows:
    """Append one token, the end-of-sequence mark, to every row."""
    ids = np.pad(rows.ids.astype(np.int64, copy=False), ((0, 0), (0, 1)))
    ids[np.arange(len(ids)), rows.lengths] = token_id
    return Rows(ids, rows.lengths + 1)


def with_first(rows: Rows, token_ids: NDArray) -> Rows:
    """Put one token, such as a mode token, before every row.

    Args:
        rows: B rows.
        token_ids: [B].
    """
    return Rows(np.concatenate([token_ids[:, None], rows.ids], axis=1), rows.lengths + 1)


def ragged_rows(flat: NDArray, starts: NDArray, lengths: NDArray) -> Rows:
    """Cut rows out of one long array.

    Args:
        flat: [N] ids.
        starts: [B] first position of each row.
        lengths: [B] row lengths.
    """
    width = int(lengths.max(initial=0))
    if not width:
        return Rows(np.zeros((len(lengths), 0), np.int64), lengths)
    # Past a row's end any readable position will do.
    positions = np.minimum(starts[:, None] + np.arange(width), len(flat) - 1)
    return Rows(flat[positions].astype(np.int64), lengths)


def seq2seq_batch(inputs: Rows, targets: Rows, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Pad inputs and targets to rectangles that a sequence-to-sequence model takes.

    A side whose rows are all equally long stays as it is; else it is padded to its longest row, rounded up to a
    multiple of 8, which matrix units like.

    Args:
        inputs: B rows for the encoder.
        targets: B rows for the decoder.
        pad_id: the padding token of the inputs; targets are padded with -100.

    Returns:
        `input_ids` [B, Li], `labels` [B, Lt] and, only when an input is padded, `attention_mask` [B, Li] of 0 and
        1; int64.
    """
    batch = {"input_ids": rectangle(inputs, pad_id), "labels": rectangle(targets, IGNORED_LABEL)}
    width = batch["input_ids"].shape[1]
    if (inputs.lengths < width).any():
        batch["attention_mask"] = (np.arange(width) < inputs.lengths[:, None]).astype(np.int64)
    return batch


def packed_batch(inputs: Rows, targets: Rows, counts: NDArray, pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Put several examples into each row, one behind the other, and say which token is of which.

    Args:
        inputs: E examples for the encoder.
        targets: E examples for the decoder.
        counts: [B], how many examples each row takes.
        pad_id: as for `seq2seq_batch`.

    Returns:
        `input_ids` [B, Li], `labels` [B, Lt], and `segments` [B, Li] and `decoder_segments` [B, Lt], the place of each
        token's example in its row, from 1, and 0 for padding; int64.
    """
    places = np.arange(counts.sum()) - np.repeat(counts.cumsum() - counts, counts) + 1
    row_of_example = np.repeat(np.arange(len(counts)), counts)
    batch = {}
    for ids_name, segments_name, rows, fill in (
        ("input_ids", "segments", inputs, pad_id),
        ("labels", "decoder_segments", targets, IGNORED_LABEL),
    ):
        lengths = np.bincount(row_of_example, rows.lengths, len(counts)).astype(np.int64)
        batch[ids_name] = rectangle(unflattened(rows.ids[rows.valid], lengths), fill)
        batch[segments_name] = rectangle(unflattened(np.repeat(places, rows.lengths), lengths), 0)
    return batch


def rectangle(rows: Rows, fill: int) -> NDArray[np.int64]:
    """Rows [B, L] under each other, `fill` behind their ends; unless all are equally long, L is a multiple of 8."""
    longest, shortest = int(rows.lengths.max()), int(rows.lengths.min())
    width = longest if longest == shortest else -(-longest // 8) * 8
    rectangle = np.full((len(rows.lengths), width), fill, np.int64)
    rectangle[:, :longest] = np.where(rows.valid[:, :longest], rows.ids[:, :longest], fill)
    return rectangle
