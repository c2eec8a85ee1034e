"""Random bits that depend on nothing but what they are for: (seed, purpose, counters) -> uint64.

There is no generator and no state. The bits of sample 7 are the same whichever batch, process or run asks for them,
which is what lets one batch of 8, eight batches of 1 and two processes with 4 each train on the same noise.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

# 2^64 divided by the golden ratio, made odd: SplitMix64's step, so consecutive counters land far apart.
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Purpose(IntEnum):
    """What a random number is used for; two purposes never share bits.

    Only append: the numbers are part of every run.
    """

    NOISE_LENGTHS = 0
    TEXT_LENGTHS = 1
    PREFIX_LENGTH = 2
    DENOISER_CYCLE = 3
    GRID_OFFSET = 4
    PERMUTATION = 5
    DOCUMENT_ORDER = 6
    SAMPLED_TOKEN = 7
    NUM_BRANCHES = 8
    BRANCH_NUMBERS = 9
    MIXTURE = 10


def mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words one by one so that every input bit moves every output bit about half the time.

    Source: Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators (OOPSLA 2014), the finaliser of
        SplitMix64.

    Args:
        bits: any shape but not 0-d, uint64; overwritten.

    Returns:
        The same array, mixed (a bijection of the 64-bit words).
    """
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return bits


def random_keys(seed: int, purpose: Purpose, *counters: ArrayLike) -> NDArray[np.uint64]:
    """One random 64-bit word for every tuple of counters.

    Args:
        seed: the run's seed, any integer.
        purpose: what the words are for.
        counters: whole numbers >= 0, each [B] or a scalar, for instance sample numbers.

    Returns:
        [B] uint64 ([1] when every counter is a scalar); do not write into it.
    """
    keys = _purpose_key(seed % 2**64, int(purpose))
    for counter in counters:
        keys = _next_keys(keys, np.atleast_1d(counter))
    return keys


@lru_cache
def _purpose_key(seed: int, purpose: int) -> NDArray[np.uint64]:
    return _next_keys(mix(np.array([seed], np.uint64)), np.array([purpose]))


def _next_keys(keys: NDArray[np.uint64], counter: NDArray) -> NDArray[np.uint64]:
    # Plus one, because mix(0) is 0. The product wraps around, as it should.
    return mix(keys + (counter.astype(np.uint64) + np.uint64(1)) * _STEP)


def random_bits(keys: NDArray[np.uint64], width: int) -> NDArray[np.uint64]:
    """`width` random 64-bit words from each key.

    Args:
        keys: [B] uint64 from `random_keys`.
        width: words for each key.

    Returns:
        [B, width] uint64; the first columns do not depend on `width`.
    """
    return mix(keys[:, None] + np.arange(1, width + 1, dtype=np.uint64) * _STEP)


def random_below(keys: NDArray[np.uint64], limits: ArrayLike) -> NDArray[np.int64]:
    """A uniform whole number in [0, limit) from each key.

    Args:
        keys: [B] uint64 from `random_keys`.
        limits: [B] or a scalar, from 1 to 2^53.

    Returns:
        [B] int64. Bias: at most limit / 2^53.
    """
    fractions = (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum((fractions * np.asarray(limits)).astype(np.int64), np.asarray(limits, np.int64) - 1)
