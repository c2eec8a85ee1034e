"""Several sets of examples in one epoch, each as often as it shall be seen."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fivefold.data.permutation import permuted
from fivefold.data.random_bits import Purpose, random_keys


def mixture_rates(sizes: Sequence[int], *, temperature: float = 1.0, cap: int | None = None) -> NDArray[np.float64]:
    """The share of each set: min(size, cap)^(1 / temperature), divided by the sum of these.

    Source: Raffel et al. 2020, arXiv:1910.10683, section 3.5.2.

    Args:
        sizes: examples of each set, at least 1.
        temperature: 1 for shares as large as the sets, more for more even ones.
        cap: the size that larger sets are taken to have; None for none.
    """
    weights = np.minimum(sizes, cap or np.inf) ** (1 / temperature)
    return weights / weights.sum()


def mixed(sizes: Sequence[int], rates: NDArray[np.float64], seed: int) -> NDArray[np.int64]:
    """The examples of one epoch: each set as often as its rate says, and none less than once.

    Where a set is not seen a whole number of times, some of its examples are seen once more than the others.

    Args:
        sizes: examples of each set.
        rates: share of each set, above 0.
        seed: decides which examples these are.

    Returns:
        [L] numbers of examples; those of the second set begin behind those of the first one.
    """
    length = max(size / rate for size, rate in zip(sizes, rates, strict=True))
    first, chosen = 0, []
    for number, (size, rate) in enumerate(zip(sizes, rates, strict=True)):
        times, rest = divmod(max(round(length * rate), size), size)
        more = permuted(np.arange(rest), size, random_keys(seed, Purpose.MIXTURE, number))
        chosen += [first + np.tile(np.arange(size), times), first + np.sort(more)]
        first += size
    return np.concatenate(chosen)
