"""The fullest micro-batches are those that the sources of data make of examples which fill their rows."""

import numpy as np
import pytest
import torch

from fivefold.data.examples import PackedSource
from fivefold.data.pairs import EncodedSource
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.objectives.full_rows import full_pairs, full_preferences, full_windows

SETTINGS = {"pad_id": 0, "seed": 0, "shuffle": False}


def ones(*lengths: int) -> list[np.ndarray]:
    return [np.ones(length, np.int32) for length in lengths]


def is_same(full, source, num_rows: int) -> bool:
    made = {name: torch.from_numpy(array) for name, array in source.batch(np.arange(num_rows)).items()}
    assert set(full) == set(made)
    return all(torch.equal(full[name], made[name]) for name in made)


def test_pairs():
    source = EncodedSource(ones(8, 8, 8), ones(5, 5, 5), **SETTINGS)
    assert is_same(full_pairs(3, 8, 5, packing=False, may_pad=False), source, 3)
    assert is_same(full_pairs(3, 8, 5, packing=True), PackedSource(source, (8, 5)), 3)


def test_pairs_of_several_lengths_have_a_mask():
    source = EncodedSource(ones(8, 7), ones(5, 5), **SETTINGS)
    assert set(full_pairs(2, 8, 5, packing=False)) == set(source.batch(np.arange(2)))


def test_conversations_of_a_decoder():
    source = EncodedSource(ones(8, 8), ones(8, 8), **SETTINGS)
    assert is_same(full_windows(2, 8), source, 2)
    assert set(full_windows(2, 8, packing=True)) <= set(PackedSource(source, (8, 8)).batch(np.arange(2)))


@pytest.mark.parametrize("needs_reference", [False, True])
@pytest.mark.parametrize(("family", "capacity", "prompt"), [("t5", (7, 10), 7), ("llama", (11,), 2)])
def test_preferences(family, capacity, prompt, needs_reference):
    pairs = TokenPairs(ones(prompt, prompt), ones(5, 5), ones(5, 5))
    logps = np.zeros((2, 2), np.float32) if needs_reference else None
    source = PreferenceSource(pairs, family, **SETTINGS, capacity=capacity, reference_logps=logps)
    assert is_same(full_preferences(2, capacity, needs_reference=needs_reference), source, 2)
