"""Ragged rows and the batches made of them."""

import numpy as np

from fivefold.data.rows import Rows, marked_stretches, ragged_rows, seq2seq_batch, with_first, with_last


def rows_of(*lists: list[int]) -> Rows:
    lengths = np.array([len(row) for row in lists])
    ids = np.full((len(lists), lengths.max()), 999)  # what lies beyond a row must never show
    for number, row in enumerate(lists):
        ids[number, : len(row)] = row
    return Rows(ids, lengths)


def as_lists(rows: Rows) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(rows.ids, rows.lengths, strict=True)]


def test_stretches_are_lined_up_with_their_marks() -> None:
    rows = rows_of([10, 11, 12, 13], [20, 21], [30, 31, 32, 33])
    starts, lengths = np.array([[3, 0], [0, 77], [1, 4]]), np.array([[1, 2], [0, 0], [3, 0]])
    marks = np.array([[-1, -2], [-3, -4], [-5, -6]])
    made = marked_stretches(rows, starts, lengths, marks, np.array([2, 1, 2]))
    assert as_lists(made) == [[13, -1, 10, 11, -2], [-3], [31, 32, 33, -5, -6]]


def test_tokens_before_and_behind() -> None:
    rows = rows_of([5, 6], [], [7])
    assert as_lists(with_last(rows, 1)) == [[5, 6, 1], [1], [7, 1]]
    assert as_lists(with_first(rows, np.array([10, 11, 12]))) == [[10, 5, 6], [11], [12, 7]]


def test_rows_are_cut_out_of_a_flat_array() -> None:
    flat = np.arange(10)
    assert as_lists(ragged_rows(flat, np.array([8, 0, 3]), np.array([2, 4, 0]))) == [[8, 9], [0, 1, 2, 3], []]
    assert as_lists(ragged_rows(flat[:0], np.array([0]), np.array([0]))) == [[]]


def test_equal_rows_need_neither_padding_nor_mask() -> None:
    batch = seq2seq_batch(rows_of([5, 6, 1], [7, 8, 1]), rows_of([9, 1], [9, 1]), pad_id=0)
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].tolist() == [[5, 6, 1], [7, 8, 1]]
    assert batch["labels"].tolist() == [[9, 1], [9, 1]]


def test_padding_fills_up_to_a_multiple_of_eight() -> None:
    batch = seq2seq_batch(rows_of([5, 6, 1], [1]), rows_of([9, 1], [4, 4, 4, 4, 4, 4, 4, 4, 1]), pad_id=3)
    assert batch["input_ids"].tolist() == [[5, 6, 1, 3, 3, 3, 3, 3], [1, 3, 3, 3, 3, 3, 3, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch["labels"].tolist() == [[9, 1] + [-100] * 14, [4] * 8 + [1] + [-100] * 7]
    assert all(array.dtype == np.int64 for array in batch.values())


def test_padded_targets_alone_need_no_mask() -> None:
    batch = seq2seq_batch(rows_of([5, 1], [6, 1]), rows_of([9, 1], [1]), pad_id=0)
    assert "attention_mask" not in batch
