"""Several examples in one row: which go together, so that little of a row is padding."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXAMPLES_AT_ONCE = 16_384
"""Packed together; more hardly fill rows better, and every example looks at all rows that are open."""


def pack(lengths: ArrayLike, capacity: ArrayLike) -> NDArray[np.int64]:
    """The row of each example: best fit, the longest examples first.

    Examples may be long in several ways at once, as pairs of an input and a target are; all must fit. An example goes
    to the row where, in the way it is longest, the least room is left behind it.

    Source: best-fit decreasing, Johnson et al., Worst-case performance bounds for simple one-dimensional packing
    algorithms (SIAM J. Comput. 3, 1974); lengths by their largest share of the capacity.

    Args:
        lengths: [N] or [N, K] tokens, each at least 0 and at most the capacity.
        capacity: scalar or [K], at least 1.

    Returns:
        [N] int64, rows numbered from 0 without gaps.

    Raises:
        ValueError: an example longer than a row.
    """
    shares = np.asarray(lengths, np.float64)
    shares = (shares[:, None] if shares.ndim == 1 else shares) / np.asarray(capacity)
    if len(shares) and shares.max() > 1:
        raise ValueError(f"example {int(shares.max(1).argmax())} does not fit into a row of {capacity}")
    rows = np.empty(len(shares), np.int64)
    num_rows = 0
    for start in range(0, len(shares), _EXAMPLES_AT_ONCE):
        chunk = slice(start, start + _EXAMPLES_AT_ONCE)
        rows[chunk] = num_rows + _pack_at_once(shares[chunk])
        num_rows = int(rows[chunk].max()) + 1
    return rows


def _pack_at_once(shares: NDArray[np.float64]) -> NDArray[np.int64]:
    rows = np.empty(len(shares), np.int64)
    room = np.ones_like(shares)  # of the rows that are open, and as many more as there can be
    num_rows = 0
    tolerance = 1e-9  # sums of shares that fill a row exactly come out a rounding error above 1
    for example in np.argsort(-shares.max(1), kind="stable"):
        share = shares[example]
        left = room[:num_rows] - share
        fits = (left >= -tolerance).all(1)
        row = int(np.where(fits, left[:, share.argmax()], np.inf).argmin()) if fits.any() else num_rows
        num_rows = max(num_rows, row + 1)
        room[row] -= share
        rows[example] = row
    return rows
