"""A pseudo-random order of N things in O(1) memory: where does the i-th visit go?"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fivefold.data.random_bits import mix

# Four rounds make a Feistel network indistinguishable from a random permutation when its round function is random
# (Luby and Rackoff, 1988, for large domains); six, because corpora of a few hundred windows have halves of a few
# bits.
_NUM_ROUNDS = 6


def permuted(indices: ArrayLike, sizes: ArrayLike, keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Send each index to its place in a keyed pseudo-random permutation of range(size).

    A Feistel network permutes a power of four that holds the range; whoever lands outside the range walks on until
    inside.

    Source: Black and Rogaway, Ciphers with Arbitrary Finite Domains (2002), method 2 (cycle walking).

    Args:
        indices: [B] whole numbers, 0 <= index < size.
        sizes: [B] or a scalar, at least 1, at most 2^62.
        keys: [B] or [1] uint64, one permutation each; rows with the same key and size share one permutation.

    Returns:
        [B] int64 in [0, size).

    Cost: the walk takes fewer than four passes on average, because the power of four is less than four times the size.
    """
    indices = np.asarray(indices, np.uint64)
    sizes = np.broadcast_to(np.asarray(sizes, np.uint64), indices.shape)
    keys = np.broadcast_to(keys, indices.shape)
    # frexp's exponent is the bit length; of size - 1, because that is the largest index.
    bit_lengths = np.frexp((sizes - np.uint64(1)).astype(np.float64))[1]
    half_bits = np.maximum((bit_lengths + 1) // 2, 1).astype(np.uint64)
    places = _feistel(indices, half_bits, keys)
    while (outside := places >= sizes).any():
        places[outside] = _feistel(places[outside], half_bits[outside], keys[outside])
    return places.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One pass of the network over numbers of 2 * half_bits bits."""
    low_mask = (np.uint64(1) << half_bits) - np.uint64(1)
    left, right = values >> half_bits, values & low_mask
    for round_number in range(_NUM_ROUNDS):
        # Eight words for each half, one a round, so no two rounds hash the same word.
        words = keys + (right * np.uint64(8) + np.uint64(round_number))
        left, right = right, left ^ (mix(words) & low_mask)
    return (left << half_bits) | right
