"""Several examples in one row: which go together, so that little of a row is padding."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXAMPLES_AT_ONCE = 4096
"""Packed together; more hardly fill rows better, and every length looks at all rows that are open."""


def pack(lengths: ArrayLike, capacity: ArrayLike) -> NDArray[np.int64]:
    """The row of each example: best fit, the longest examples first.

    Examples may be long in several ways at once, as those with an input and a target are; all must fit. An example goes
    to the row where, in the way it is longest, the least room is left behind it.

    Source: best-fit decreasing, Johnson et al., Worst-case performance bounds for simple one-dimensional packing
    algorithms (SIAM J. Comput. 3, 1974); lengths by their largest share of the capacity.

    Args:
        lengths: [N] or [N, K] tokens, each at least 1 and at most the capacity.
        capacity: scalar or [K], at least 1.

    Returns:
        [N] int64, rows numbered from 0 without gaps.

    Raises:
        ValueError: an example longer than a row.

    Cost: equal lengths are placed together, so a document, whose length decides that of both its sides, takes about 4
        microseconds, a pair of prompt and response 50.
    """
    lengths = np.asarray(lengths, np.int64)
    lengths = lengths[:, None] if lengths.ndim == 1 else lengths
    capacity = np.broadcast_to(np.asarray(capacity, np.int64), lengths.shape[1:])
    if (too_long := (lengths > capacity).any(1)).any():
        raise ValueError(f"example {too_long.argmax()} does not fit into a row of {capacity}")
    rows = np.empty(len(lengths), np.int64)
    num_rows = 0
    for start in range(0, len(lengths), _EXAMPLES_AT_ONCE):
        chunk = slice(start, start + _EXAMPLES_AT_ONCE)
        rows[chunk] = num_rows + _pack_at_once(lengths[chunk], capacity)
        num_rows = int(rows[chunk].max()) + 1
    return rows


def balanced_length(lengths: NDArray[np.int64], input_length: int) -> int:
    """The target length at which rows of `input_length` are full on both sides at once, rounded up to a multiple of 8.

    Args:
        lengths: [N, 2] tokens of inputs and targets; the longest target fits in any case.
        input_length: tokens of a row's inputs.
    """
    inputs, targets = lengths.sum(0)
    balanced = -(-input_length * targets // (8 * inputs)) * 8
    return int(max(balanced, lengths[:, 1].max()))


def _pack_at_once(lengths: NDArray[np.int64], capacity: NDArray[np.int64]) -> NDArray[np.int64]:
    sizes, size_of_example, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
    examples_by_size = np.split(size_of_example.argsort(kind="stable"), counts.cumsum()[:-1])
    shares = sizes / capacity
    rows = np.empty(len(lengths), np.int64)
    room = np.empty_like(lengths.T)  # [K, rows] of those that are open; there cannot be more than examples
    num_rows = 0
    for number in np.lexsort((-shares.sum(1), -shares.max(1))):
        size, count = sizes[number][:, None], counts[number]
        fitting = np.flatnonzero((room[:, :num_rows] >= size).all(0))
        fitting = fitting[room[shares[number].argmax(), fitting].argsort(kind="stable")]
        # A row that has taken one of a size is the tightest for the next of that size: it takes what it can.
        copies = (room[:, fitting] // size).min(0)
        if (missing := count - copies.sum()) > 0:
            copies_in_new = (capacity // sizes[number]).min()
            new = num_rows + np.arange(-(-missing // copies_in_new))
            fitting, copies = np.append(fitting, new), np.append(copies, np.full(len(new), copies_in_new))
            room[:, new] = capacity[:, None]
            num_rows += len(new)
        chosen = np.repeat(fitting, copies)[:count]
        rows[examples_by_size[number]] = chosen
        room[:, :num_rows] -= np.bincount(chosen, minlength=num_rows) * size
    return rows
