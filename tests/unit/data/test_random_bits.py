"""Counter-based random bits: reproducible one by one, and random enough."""

import numpy as np
import pytest

from fivefold.data.random_bits import Purpose, random_below, random_bits, random_keys


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2).sum() / expected)


def test_bits_do_not_depend_on_the_batch() -> None:
    together = random_bits(random_keys(1, Purpose.PREFIX_LENGTH, np.arange(50)), 20)
    for sample in (0, 7, 49):
        alone = random_bits(random_keys(1, Purpose.PREFIX_LENGTH, sample), 9)
        np.testing.assert_array_equal(alone[0], together[sample, :9])


def test_every_argument_changes_the_bits() -> None:
    keys = {
        int(random_keys(*arguments)[0])
        for arguments in (
            (0, Purpose.NOISE_LENGTHS, 0),
            (1, Purpose.NOISE_LENGTHS, 0),
            (-1, Purpose.NOISE_LENGTHS, 0),
            (0, Purpose.TEXT_LENGTHS, 0),
            (0, Purpose.NOISE_LENGTHS, 1),
            (0, Purpose.NOISE_LENGTHS, 0, 0),
            (0, Purpose.NOISE_LENGTHS, 0, 1),
            (0, Purpose.NOISE_LENGTHS, 1, 0),
        )
    }
    assert len(keys) == 8


def test_each_bit_is_set_half_the_time() -> None:
    words = random_bits(random_keys(3, Purpose.NOISE_LENGTHS, np.arange(1000)), 20).ravel()
    shares = [((words >> np.uint64(bit)) & np.uint64(1)).mean() for bit in range(64)]
    # 20,000 coin tosses: standard deviation 0.0035; 64 of them stay within 4.5 of it.
    assert np.abs(np.array(shares) - 0.5).max() < 0.016


def test_neighbours_are_uncorrelated() -> None:
    words = random_bits(random_keys(3, Purpose.NOISE_LENGTHS, np.arange(300)), 300) / 2.0**64
    for one, other in ((words[:, :-1], words[:, 1:]), (words[:-1], words[1:])):
        # 89,700 pairs: standard deviation of the correlation 0.0033.
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.015


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
def test_numbers_below_a_limit_are_uniform(limit: int) -> None:
    numbers = random_below(random_keys(5, Purpose.PREFIX_LENGTH, np.arange(20_000)), limit)
    counts = np.bincount(numbers, minlength=limit)
    assert len(counts) == limit
    # The statistic has mean limit - 1 and variance 2 (limit - 1).
    assert chi_square(counts) < limit - 1 + 5 * np.sqrt(2 * limit)


def test_numbers_stay_below_huge_limits() -> None:
    keys = np.full(2, 2**64 - 1, np.uint64)
    np.testing.assert_array_equal(random_below(keys, [2**53, 3]), [2**53 - 1, 2])
