"""Rows hold what was put into them, no more than fits, and about as much as can be."""

import numpy as np
import pytest

from fivefold.data.packing import balanced_length, pack


@pytest.mark.parametrize("seed", range(20))
def test_every_row_keeps_to_its_capacity_and_none_is_empty(seed):
    generator = np.random.default_rng(seed)
    capacity = generator.integers(20, 600, 2)
    lengths = generator.integers(1, capacity + 1, (generator.integers(1, 900), 2))
    rows = pack(lengths, capacity)
    for way in range(2):
        filled = np.bincount(rows, lengths[:, way])
        assert filled.max() <= capacity[way]
        assert filled.min() > 0


def slow_pack(lengths: np.ndarray, capacity: np.ndarray) -> int:
    """Rows that best fit needs, one example at a time."""
    room: list[np.ndarray] = []
    shares = lengths / capacity
    for example in np.lexsort((-shares.sum(1), -shares.max(1))):
        size, way = lengths[example], shares[example].argmax()
        fitting = [row for row in room if (row >= size).all()]
        if not fitting:
            room.append(capacity.copy())
        tightest = min(fitting, key=lambda row: row[way], default=room[-1])
        tightest -= size
    return len(room)


@pytest.mark.parametrize("longest", [8, 60, 200])
def test_equal_lengths_together_go_where_one_by_one_they_would(longest):
    generator = np.random.default_rng(longest)
    capacity = np.array([100, 200])
    lengths = generator.integers(1, np.minimum(capacity, longest) + 1, (700, 2))
    assert abs(pack(lengths, capacity).max() + 1 - slow_pack(lengths, capacity)) <= 2  # rows that are equally tight


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).gamma(2.0, 40.0, 20_000).clip(1, 512).astype(int)
    num_rows = pack(lengths, 512).max() + 1
    assert num_rows <= 1.01 * lengths.sum() / 512


def test_lengths_that_make_up_whole_rows_fill_them_whole():
    pairs = np.array([[300, 50], [212, 64], [100, 14], [412, 100], [512, 114]])
    assert len(set(pack(pairs, (512, 114)))) == 3


def test_two_that_do_not_fit_side_by_side_get_a_row_each():
    assert sorted(pack([[10, 90], [10, 90]], (100, 100))) == [0, 1]  # there is room for both inputs
    assert pack(np.zeros((0, 2)), 5).shape == (0,)
    with pytest.raises(ValueError, match="example 1 does not fit"):
        pack([3, 6], 5)


def test_balanced_rows_are_full_on_both_sides():
    inputs = np.random.default_rng(0).gamma(2.0, 20.0, 20_000).clip(2, 500).astype(int)
    lengths = np.stack([inputs, inputs // 5 + 2], 1)
    capacity = (512, balanced_length(lengths, 512))
    assert capacity[1] % 8 == 0
    filled = lengths.sum(0) / ((pack(lengths, capacity).max() + 1) * np.array(capacity))
    assert filled.min() > 0.93
    assert balanced_length(np.array([[500, 1], [3, 41]]), 504) == 48
    assert balanced_length(np.array([[500, 1], [500, 91]]), 504) == 91  # which the longest target needs
