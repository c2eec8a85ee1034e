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


def kept(ids: NDArray, keep: NDArray[np.bool_]) -> Rows:
    """Drop what is not kept and move the rest of each row to the left.

    Args:
        ids: [B, L].
        keep: [B, L] boolean.

    Returns:
        B rows as wide as the longest of them.
    """
    lengths = keep.sum(axis=1)
    rows = Rows(np.zeros((len(ids), lengths.max(initial=0)), np.int64), lengths)
    rows.ids[rows.valid] = ids[keep]  # both masks run row by row, so the k-th kept id meets the k-th free place
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
    batch = {"input_ids": _rectangle(inputs, pad_id), "labels": _rectangle(targets, IGNORED_LABEL)}
    width = batch["input_ids"].shape[1]
    if (inputs.lengths < width).any():
        batch["attention_mask"] = (np.arange(width) < inputs.lengths[:, None]).astype(np.int64)
    return batch


def _rectangle(rows: Rows, fill: int) -> NDArray[np.int64]:
    longest, shortest = int(rows.lengths.max()), int(rows.lengths.min())
    width = longest if longest == shortest else -(-longest // 8) * 8
    rectangle = np.full((len(rows.lengths), width), fill, np.int64)
    rectangle[:, :longest] = np.where(rows.valid[:, :longest], rows.ids[:, :longest], fill)
    return rectangle
