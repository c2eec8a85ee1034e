"""The O(1)-memory permutation: one to one, keyed, and spread out."""

import numpy as np
import pytest

from fivefold.data.permutation import permuted
from fivefold.data.random_bits import Purpose, random_keys


def key(number: int) -> np.ndarray:
    return random_keys(0, Purpose.PERMUTATION, number)


@pytest.mark.parametrize("size", [*range(1, 40), 63, 64, 65, 255, 256, 257, 1000, 4097])
def test_it_is_one_to_one(size: int) -> None:
    places = permuted(np.arange(size), size, key(size))
    np.testing.assert_array_equal(np.sort(places), np.arange(size))


def test_rows_with_different_sizes_and_keys_do_not_mix() -> None:
    sizes, numbers = np.array([5, 1000, 1, 70_000]), np.array([0, 1, 2, 3])
    together = permuted(sizes - 1, sizes, random_keys(0, Purpose.PERMUTATION, numbers))
    for row, size in enumerate(sizes):
        assert permuted(np.array([size - 1]), size, key(row))[0] == together[row]


def test_huge_sizes_are_in_range() -> None:
    size = 10**12
    places = permuted(np.arange(1000) * (size // 1000), size, key(0))
    assert len(np.unique(places)) == 1000
    assert 0 <= places.min() <= places.max() < size


@pytest.mark.parametrize("size", [6, 20])
def test_every_index_goes_everywhere_equally_often(size: int) -> None:
    num_keys = 4000
    keys = np.repeat(random_keys(0, Purpose.PERMUTATION, np.arange(num_keys)), size)
    places = permuted(np.tile(np.arange(size), num_keys), size, keys).reshape(num_keys, size)
    for index in range(size):
        counts = np.bincount(places[:, index], minlength=size)
        chi_square = ((counts - num_keys / size) ** 2).sum() / (num_keys / size)
        # Mean size - 1, variance 2 (size - 1); five standard deviations for each of up to 20 indices.
        assert chi_square < size - 1 + 5 * np.sqrt(2 * size)


def test_order_looks_shuffled() -> None:
    places = permuted(np.arange(10_000), 10_000, key(9))
    # Correlation with the identity and of neighbours: standard deviation 0.01 each.
    assert abs(np.corrcoef(places, np.arange(10_000))[0, 1]) < 0.05
    assert abs(np.corrcoef(places[1:], places[:-1])[0, 1]) < 0.05
