"""Mixtures by hand: shares as T5 defines them, every example there, none much more often than its fellows."""

import numpy as np
import pytest

from fivefold.data.mixture import mixed, mixture_rates


@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ({}, [1 / 7, 4 / 7, 2 / 7]),
        ({"temperature": 2.0}, [1 / (3 + 2**0.5), 2 / (3 + 2**0.5), 2**0.5 / (3 + 2**0.5)]),
        ({"cap": 150}, [100 / 400, 150 / 400, 150 / 400]),
        ({"cap": 100}, [1 / 3, 1 / 3, 1 / 3]),
        ({"temperature": 1e9}, [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_rates(more, shares):
    rates = mixture_rates([100, 400, 200], **more)
    np.testing.assert_allclose(rates, shares, rtol=1e-6)
    epoch = mixed([100, 400, 200], rates, seed=0)
    of_set = np.bincount(np.digitize(epoch, [100, 500]), minlength=3)
    np.testing.assert_allclose(of_set / len(epoch), shares, atol=1 / len(epoch))
    counts = np.bincount(epoch, minlength=700)
    for part in (counts[:100], counts[100:500], counts[500:]):
        assert part.min() >= 1
        assert part.max() - part.min() <= 1


def test_alone_and_in_proportion_each_is_seen_once():
    assert mixed([7], mixture_rates([7]), 3).tolist() == list(range(7))
    assert sorted(mixed([3, 4], mixture_rates([3, 4]), 3)) == list(range(7))


def test_the_seed_decides_who_is_seen_once_more():
    rates = mixture_rates([10, 25], cap=10)
    epochs = [mixed([10, 25], rates, seed).tolist() for seed in (0, 0, 1)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(epochs[0]) == 50
