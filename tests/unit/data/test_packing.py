"""Rows hold what was put into them, no more than fits, and about as much as can be."""

import numpy as np
import pytest

from fivefold.data.packing import pack


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
