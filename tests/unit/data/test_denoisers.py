"""UL2's mixture and how it is dealt out."""

import numpy as np
import pytest

from fivefold.data.corruption import PrefixSplit, SpanCorruption
from fivefold.data.denoisers import UL2, Denoiser, denoiser_numbers
from fivefold.data.prefix import prefix_split
from fivefold.data.rows import Rows
from fivefold.errors import ConfigError, DataError


def test_every_block_has_each_denoiser_once_in_changing_order() -> None:
    numbers = denoiser_numbers(np.arange(700), 7, seed=4).reshape(100, 7)
    np.testing.assert_array_equal(np.sort(numbers, axis=1), np.tile(np.arange(7), (100, 1)))
    assert len({tuple(block) for block in numbers.tolist()}) > 90
    # Each denoiser stands in each place 100 / 7 times, give or take.
    assert all(np.bincount(numbers[:, place], minlength=7).min() >= 3 for place in range(7))


def test_a_sample_has_the_same_denoiser_in_any_batch() -> None:
    all_numbers = denoiser_numbers(np.arange(50), 7, seed=4)
    some = np.array([3, 17, 49])
    np.testing.assert_array_equal(denoiser_numbers(some, 7, seed=4), all_numbers[some])


@pytest.mark.parametrize("with_modes", [False, True])
def test_mixture_keeps_its_limits_and_gives_the_text_back(with_modes: bool, restore, sentinels) -> None:
    modes = np.arange(50, 57) if with_modes else None
    limits = {"input_length": 128, "target_length": 128}
    corruption = SpanCorruption(UL2, **limits, seed=0, sentinels=sentinels, eos_id=1, mode_ids=modes)
    samples = np.arange(70)
    kinds = corruption.kinds(samples)
    lengths = corruption.window_lengths[kinds]
    text = np.random.default_rng(0).integers(100, 30_000, (70, int(lengths.max())))
    inputs, targets = corruption.corrupted(Rows(text, lengths), samples)
    assert inputs.lengths.max() == 128
    assert targets.lengths.max() <= 128
    for row, kind in enumerate(kinds):
        source, target = (side.ids[row, : side.lengths[row]].tolist() for side in (inputs, targets))
        if modes is not None:
            assert source.pop(0) == modes[kind]
        original = text[row, : lengths[row]].tolist()
        assert restore(source, target) == original
        hidden = len([token for token in target[:-1] if token not in sentinels])
        assert hidden == round(len(original) * UL2[kind].noise_density)
        if UL2[kind].mode_token == "[S2S]":
            prefix = source[:-2]
            assert original[: len(prefix)] == prefix, "the sequential denoiser hides the end and nothing else"


def test_windows_of_the_mixture_at_512() -> None:
    corruption = SpanCorruption(UL2, input_length=512, target_length=512, seed=0, sentinels=np.arange(200), eos_id=1)
    assert corruption.window_lengths[[0, 1, 3, 4, 5, 6]].tolist() == [568, 588, 766, 908, 600, 1006]


def test_sentinels_and_lengths_are_checked_before_the_first_batch() -> None:
    common = {"target_length": None, "seed": 0, "eos_id": 1}
    with pytest.raises(DataError, match="114 spans"):
        SpanCorruption([Denoiser(0.15, 3.0)], input_length=2048, sentinels=np.arange(100), **common)
    with pytest.raises(ConfigError, match="give a shorter one"):
        SpanCorruption([Denoiser(0.5, 64.0)], input_length=60_000, sentinels=np.arange(10_000), **common)


def test_prefixes_are_cut_uniformly_and_nothing_is_lost() -> None:
    length, num_samples = 11, 20_000
    text = np.tile(np.arange(100, 100 + length), (num_samples, 1))
    rows = Rows(text, np.full(num_samples, length))
    inputs, targets = prefix_split(rows, seed=0, sample_ids=np.arange(num_samples), eos_id=1)
    counts = np.bincount(inputs.lengths - 1, minlength=length)
    assert counts[0] == 0
    expected = num_samples / (length - 1)
    # Chi-square of 9 degrees of freedom: mean 9, standard deviation 4.2.
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 30
    np.testing.assert_array_equal(inputs.lengths + targets.lengths, np.full(num_samples, length + 2))
    for row in range(100):
        source, target = (side.ids[row, : side.lengths[row]].tolist() for side in (inputs, targets))
        assert source.pop() == target.pop() == 1
        assert source + target == text[row].tolist()


def test_prefixes_of_ragged_and_tiny_rows() -> None:
    lengths = np.array([5, 1, 2, 0])
    rows = Rows(np.arange(20).reshape(4, 5), lengths)
    inputs, targets = prefix_split(rows, seed=3, sample_ids=np.arange(4), eos_id=99)
    made = [
        (source[:n].tolist(), target[:m].tolist())
        for source, n, target, m in zip(inputs.ids, inputs.lengths, targets.ids, targets.lengths, strict=True)
    ]
    assert made[1:] == [([99], [5, 99]), ([10, 99], [11, 99]), ([99], [99])]
    assert made[0][0][:-1] + made[0][1] == [0, 1, 2, 3, 4, 99]


def test_prefix_windows_fit_wherever_the_cut_falls() -> None:
    corruption = PrefixSplit(input_length=64, target_length=20, seed=0, eos_id=1)
    samples = np.arange(500)
    lengths = corruption.window_lengths[corruption.kinds(samples)]
    inputs, targets = corruption.corrupted(Rows(np.zeros((500, lengths[0]), np.int64), lengths), samples)
    assert inputs.lengths.max() <= 64
    assert targets.lengths.max() == 20
