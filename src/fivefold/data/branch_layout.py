"""A main text and its branches as one row of tokens: who each is, when it comes, and what predicts it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAIN, PADDING = 0, -1
"""Numbers in `branches` that are no branch's."""


class Branch(NamedTuple):
    """What follows the main text, beside other branches that do."""

    ids: NDArray
    answer_offset: int = 0
    """Tokens at its beginning that are read and not learned."""


class BranchLayout(NamedTuple):
    """[main | branch | branch | ...] as N tokens; time goes on from the main text in every branch."""

    ids: NDArray[np.int64]
    branches: NDArray[np.int64]
    """[N], `MAIN` or the number of the token's branch, from 1."""
    times: NDArray[np.int64]
    """[N], places on the way that leads to the token: main's from 0, each branch's from main's length."""
    sources: NDArray[np.int64]
    """[P], the place from which a learned token is predicted. Main's last place predicts the first token of every
    branch."""
    targets: NDArray[np.int64]
    """[P], the token to predict there."""


def branch_layout(
    main: NDArray, branches: Sequence[Branch], *, numbers: Sequence[int] | None = None, learns_main: bool = True
) -> BranchLayout:
    """Lay a main text and its branches behind each other.

    Args:
        main: token ids, perhaps none; then nothing predicts the first token of a branch.
        branches: empty ones are left out.
        numbers: of the branches, distinct and from 1; by default 1, 2, ...
        learns_main: whether main's tokens are learned, too.
    """
    numbers = range(1, len(branches) + 1) if numbers is None else numbers
    kept = [(number, branch) for number, branch in zip(numbers, branches, strict=True) if len(branch.ids)]
    texts = [np.asarray(main), *(branch.ids for _, branch in kept)]
    lengths = np.array([len(text) for text in texts])
    starts = lengths.cumsum() - lengths
    ids = np.concatenate(texts).astype(np.int64)
    places = np.arange(len(ids))
    main_length = lengths[0]
    times = places - np.repeat(np.where(starts, starts - main_length, 0), lengths)
    sources = places - 1
    sources[starts[1:][starts[1:] < len(ids)]] = main_length - 1  # -1 where there is no main
    offsets = np.array([0 if learns_main else main_length, *(branch.answer_offset for _, branch in kept)])
    is_learned = (places - np.repeat(starts, lengths) >= np.repeat(offsets, lengths)) & (sources >= 0)
    owners = np.repeat([MAIN, *(number for number, _ in kept)], lengths)
    return BranchLayout(ids, owners, times, sources[is_learned], ids[is_learned])


def branch_batch(layouts: Sequence[BranchLayout], pad_id: int) -> dict[str, NDArray[np.int64]]:
    """Layouts as the rows of a batch, padded on the right.

    Returns:
        `input_ids`, `branches` (-1 for padding) and `times`, all [B, N]; `sources` and `targets` [P] of all rows
        together, a source as a place in the flattened [B * N].
    """
    lengths = np.array([len(layout.ids) for layout in layouts])
    width = int(lengths.max())
    columns = (("input_ids", "ids", pad_id), ("branches", "branches", PADDING), ("times", "times", 0))
    batch = {}
    for name, field, padding in columns:
        rows = np.full((len(layouts), width), padding, np.int64)
        rows[np.arange(width) < lengths[:, None]] = np.concatenate([getattr(layout, field) for layout in layouts])
        batch[name] = rows
    batch["sources"] = np.concatenate([layout.sources + row * width for row, layout in enumerate(layouts)])
    batch["targets"] = np.concatenate([layout.targets for layout in layouts])
    return batch
