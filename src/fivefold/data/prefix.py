"""Prefix language modelling: the beginning of a text goes in, the rest is asked for."""

import numpy as np
from numpy.typing import NDArray

from fivefold.data.random_bits import Purpose, random_below, random_keys
from fivefold.data.rows import Rows, with_last


def prefix_split(rows: Rows, *, seed: int, sample_ids: NDArray[np.int64], eos_id: int) -> tuple[Rows, Rows]:
    """Cut each row in two at a random place, every place being equally likely.

    Source: Raffel et al. (2019), section 3.1.4, "prefix language modeling".

    Args:
        rows: B rows of tokens without end marks. A row of one token is all target.
        seed: the run's seed.
        sample_ids: [B], the number of each sample in the run.
        eos_id: the end mark.

    Returns:
        Inputs (at least one token, then the end mark) and targets (likewise).
    """
    places = np.maximum(rows.lengths - 1, 1)
    cuts = 1 + random_below(random_keys(seed, Purpose.PREFIX_LENGTH, sample_ids), places)
    cuts = np.minimum(cuts, rows.lengths - 1).clip(0)
    suffix_lengths = rows.lengths - cuts
    columns = cuts[:, None] + np.arange(suffix_lengths.max())
    suffixes = np.take_along_axis(rows.ids, np.minimum(columns, rows.ids.shape[1] - 1), axis=1)
    return with_last(Rows(rows.ids, cuts), eos_id), with_last(Rows(suffixes, suffix_lengths), eos_id)
