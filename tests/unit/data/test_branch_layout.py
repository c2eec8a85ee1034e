"""Main and branches in a row: worked out by hand, and against sequences of their own."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fivefold.data.branch_layout import Branch, branch_batch, branch_layout

TEXT = st.lists(st.integers(3, 50), max_size=5).map(np.array)


def _pairs(layout):
    """Of each learned token: what leads to it, and it."""
    found = []
    for source, target in zip(layout.sources, layout.targets, strict=True):
        places = [i for i in range(source + 1) if layout.branches[i] in (0, layout.branches[source])]
        found.append((tuple(layout.ids[places]), int(target)))
    return sorted(found)


def test_by_hand():
    layout = branch_layout(np.array([10, 11, 12]), [Branch(np.array([20, 21])), Branch(np.array([30, 31, 32]), 1)])
    assert layout.ids.tolist() == [10, 11, 12, 20, 21, 30, 31, 32]
    assert layout.branches.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert layout.times.tolist() == [0, 1, 2, 3, 4, 3, 4, 5]
    assert layout.sources.tolist() == [0, 1, 2, 3, 5, 6]
    assert layout.targets.tolist() == [11, 12, 20, 21, 31, 32]


@given(TEXT, st.lists(TEXT, max_size=4), st.booleans())
def test_what_is_learned_is_what_sequences_of_their_own_learn(main, texts, learns_main):
    layout = branch_layout(main, [Branch(text) for text in texts], learns_main=learns_main)
    expected = [(tuple(main[:i]), int(main[i])) for i in range(1, len(main)) if learns_main]
    for text in texts:
        whole = [*main, *text]
        expected += [(tuple(whole[:i]), int(whole[i])) for i in range(max(1, len(main)), len(whole))]
    assert _pairs(layout) == sorted(expected)
    starts = np.flatnonzero(np.diff(layout.branches, prepend=-1))
    assert all(layout.times[start] in (0, len(main)) for start in starts)


def test_offsets_numbers_and_empty_branches():
    branches = [Branch(np.array([20, 21]), 2), Branch(np.zeros(0, int)), Branch(np.array([30, 31]), 5)]
    layout = branch_layout(np.array([10]), branches, numbers=[7, 3, 5])
    assert layout.branches.tolist() == [0, 7, 7, 5, 5]
    assert layout.targets.size == 0


def test_rows_of_a_batch_are_padded_and_keep_their_pairs():
    layouts = [
        branch_layout(np.array([10, 11]), [Branch(np.array([20]))]),
        branch_layout(np.array([40]), [Branch(np.array([50, 51])), Branch(np.array([60]))]),
    ]
    batch = branch_batch(layouts, pad_id=0)
    assert batch["input_ids"].tolist() == [[10, 11, 20, 0], [40, 50, 51, 60]]
    assert batch["branches"].tolist() == [[0, 0, 1, -1], [0, 1, 1, 2]]
    assert batch["times"].tolist() == [[0, 1, 2, 0], [0, 1, 2, 1]]
    flat = batch["input_ids"].ravel()
    assert [(flat[s], t) for s, t in zip(batch["sources"], batch["targets"], strict=True)] == [
        (10, 11),
        (11, 20),
        (40, 50),
        (50, 51),
        (40, 60),
    ]
