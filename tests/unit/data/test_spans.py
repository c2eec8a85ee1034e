"""Span corruption: T5's lengths, T5's distribution, nothing lost."""

from collections import Counter
from itertools import combinations, pairwise
from random import Random

import numpy as np
import pytest

from fivefold.data.random_bits import Purpose, random_keys
from fivefold.data.rows import Rows
from fivefold.data.spans import noise_counts, random_compositions, raw_lengths, span_borders, span_corruption
from fivefold.errors import ConfigError, DataError


def as_lists(rows: Rows) -> list[list[int]]:
    return [ids[:length].tolist() for ids, length in zip(rows.ids, rows.lengths, strict=True)]


def random_rows(lengths: np.ndarray, seed: int = 0) -> Rows:
    ids = np.random.default_rng(seed).integers(2, 30_000, (len(lengths), int(lengths.max())))
    return Rows(ids.astype(np.uint16), lengths)


def test_lengths_are_those_of_the_published_preprocessing() -> None:
    # As the published preprocessing computes them.
    assert raw_lengths(512, 0.15, 3.0) == (568, 114)
    assert raw_lengths(1024, 0.15, 3.0) == (1137, 229)
    assert raw_lengths(2048, 0.15, 3.0) == (2274, 456)
    assert raw_lengths(512, 0.15, 8.0) == (588, 100)
    assert raw_lengths(512, 0.15, 64.0) == (600, 92)
    assert raw_lengths(512, 0.5, 3.0) == (766, 512)
    assert raw_lengths(512, 0.5, 8.0) == (908, 512)
    assert raw_lengths(512, 0.5, 64.0) == (1006, 512)


def count_up(input_length: int, density: float, span: float) -> tuple[int, int]:
    """The lengths found by trying one raw token more each time, in Python's own arithmetic."""

    def lengths(raw: int) -> tuple[int, int]:
        noise = min(max(round(raw * density), 1), raw - 1)
        spans = min(max(round(noise / span), 1), noise, raw - noise)
        return raw - noise + spans + 1, noise + spans + 1

    raw = 2
    while lengths(raw + 1)[0] <= input_length and not (density == 0.5 and lengths(raw + 1)[1] > input_length):
        raw += 1
    return raw, lengths(raw)[1]


@pytest.mark.parametrize("density", [0.01, 0.15, 0.3, 0.5, 0.85])
@pytest.mark.parametrize("span", [1.0, 1.5, 3.0, 20.0, float("inf")])
def test_lengths_equal_counting_up(density: float, span: float) -> None:
    for input_length in [*range(3, 40), 97, 128, 300]:
        assert raw_lengths(input_length, density, span) == count_up(input_length, density, span)


def test_target_length_is_kept_too() -> None:
    raw, target_length = raw_lengths(512, 0.5, 3.0, target_length=100)
    assert target_length <= 100
    assert raw_lengths(10_000, 0.5, 3.0, target_length=100) == (raw, target_length)


@pytest.mark.parametrize(("input_length", "target_length"), [(2, None), (0, None), (-5, None), (512, 2)])
def test_too_short_lengths_are_refused(input_length: int, target_length: int | None) -> None:
    with pytest.raises(ConfigError, match="at least 3 tokens each"):
        raw_lengths(input_length, 0.15, 3.0, target_length)


@pytest.mark.parametrize(("total", "parts"), [(7, 1), (6, 3), (8, 4), (5, 5), (9, 2)])
def test_every_composition_is_equally_likely(total: int, parts: int) -> None:
    num_samples = 20_000
    keys = random_keys(1, Purpose.NOISE_LENGTHS, np.arange(num_samples))
    drawn = random_compositions(np.full(num_samples, total), np.full(num_samples, parts), keys)
    all_ways = [tuple(np.diff([0, *cuts, total]).tolist()) for cuts in combinations(range(1, total), parts - 1)]
    counts = Counter(map(tuple, drawn.tolist()))
    assert set(counts) == set(all_ways)
    expected = num_samples / len(all_ways)
    chi_square = sum((counts[way] - expected) ** 2 / expected for way in all_ways)
    # Mean len - 1, variance 2 (len - 1); five standard deviations.
    assert chi_square < len(all_ways) - 1 + 5 * np.sqrt(2 * len(all_ways))


def test_compositions_of_ragged_rows_equal_those_of_single_rows() -> None:
    totals, parts = np.array([1, 50, 7, 30]), np.array([1, 12, 7, 2])
    keys = random_keys(2, Purpose.TEXT_LENGTHS, np.arange(4))
    together = random_compositions(totals, parts, keys)
    for row in range(4):
        alone = random_compositions(totals[[row]], parts[[row]], keys[[row]])
        assert together[row, : parts[row]].tolist() == alone[0].tolist()
        assert not together[row, parts[row] :].any()


@pytest.mark.parametrize(("density", "span"), [(0.15, 3.0), (0.5, 3.0), (0.5, 64.0), (0.15, 1.0), (0.25, float("inf"))])
def test_noise_has_the_asked_density_and_shape(density: float, span: float) -> None:
    lengths = np.full(64, 512)
    borders, num_spans = span_borders(lengths, density, span, seed=0, sample_ids=np.arange(64))
    stretches = np.diff(borders, axis=1)
    assert (borders[:, 0] == 0).all()
    assert (borders[:, -1] == 512).all()
    assert (stretches > 0).all(), "text first, noise last, and no empty stretch"
    # Exact, not on average: rounding to whole tokens is all that separates it from the density.
    assert (stretches[:, 1::2].sum(axis=1) == round(512 * density)).all()
    assert (num_spans == noise_counts(512, density, span)[1]).all()
    assert stretches.shape[1] == 2 * num_spans[0]


def test_distribution_equals_the_slow_reference(slow_corruption, sentinels) -> None:
    num_samples, length = 6000, 24
    text = list(range(100, 100 + length))
    slow = [slow_corruption(text, 0.3, 2.0, Random(number)) for number in range(num_samples)]
    rows = Rows(np.tile(text, (num_samples, 1)), np.full(num_samples, length))
    arguments = {"seed": 0, "sample_ids": np.arange(num_samples), "sentinels": sentinels, "eos_id": 1}
    fast = list(zip(*map(as_lists, span_corruption(rows, 0.3, 2.0, **arguments)), strict=True))
    assert {(len(inputs), len(targets)) for inputs, targets in fast} == {(len(a), len(b)) for a, b in slow}
    # Which tokens are hidden, and which follow each other into hiding.
    for what in (lambda targets: targets, lambda targets: list(pairwise(targets))):
        counts = [Counter(item for _, targets in made for item in what(targets)) for made in (slow, fast)]
        common = [item for item in counts[0] if min(counts[0][item], counts[1][item]) >= 20]
        statistics = [(counts[0][item] - counts[1][item]) ** 2 / (counts[0][item] + counts[1][item]) for item in common]
        # Each is at most chi-square with one degree of freedom; items of one sample are correlated, so leave room.
        assert len(common) > 20
        assert np.mean(statistics) < 1.6
        assert max(statistics) < 20


def test_ten_thousand_documents_come_back(restore, sentinels) -> None:
    generator = np.random.default_rng(7)
    lengths = generator.integers(0, 400, 10_000)
    rows = random_rows(lengths, 8)
    densities = generator.choice([0.1, 0.15, 0.5, 0.7], 10_000)
    spans = generator.choice([1.0, 3.0, 8.0, 64.0, np.inf], 10_000)
    inputs, targets = span_corruption(
        rows, densities, spans, seed=3, sample_ids=np.arange(10_000), sentinels=sentinels, eos_id=1
    )
    for text, source, target in zip(as_lists(rows), as_lists(inputs), as_lists(targets), strict=True):
        assert restore(source, target) == text


def test_a_sample_does_not_depend_on_its_batch(sentinels) -> None:
    lengths = np.array([568, 3, 120, 568, 1, 44])
    rows = random_rows(lengths)
    arguments = {"seed": 11, "sentinels": sentinels, "eos_id": 1}
    together = span_corruption(rows, 0.15, 3.0, sample_ids=np.arange(6), **arguments)
    for row in range(6):
        one = Rows(rows.ids[[row]], lengths[[row]])
        alone = span_corruption(one, 0.15, 3.0, sample_ids=np.array([row]), **arguments)
        for side in (0, 1):
            assert as_lists(alone[side])[0] == as_lists(together[side])[row]


def test_seed_and_sample_number_change_the_noise() -> None:
    lengths = np.full(2, 568)
    borders, _ = span_borders(lengths, 0.15, 3.0, seed=0, sample_ids=np.arange(2))
    other, _ = span_borders(lengths, 0.15, 3.0, seed=1, sample_ids=np.arange(2))
    assert (borders[0] != borders[1]).any()
    assert (borders != other).any(axis=1).all()


def test_worked_example(sentinels) -> None:
    # Two tokens: one is kept, one hidden, so there is only one way.
    rows = Rows(np.array([[10, 11]]), np.array([2]))
    sample = {"seed": 0, "sample_ids": np.arange(1)}
    inputs, targets = span_corruption(rows, 0.15, 3.0, **sample, sentinels=sentinels, eos_id=1)
    assert as_lists(inputs) == [[10, sentinels[0], 1]]
    assert as_lists(targets) == [[sentinels[0], 11, 1]]


def test_too_few_sentinels_are_refused_not_invented(sentinels) -> None:
    rows = random_rows(np.full(2, 2274))
    with pytest.raises(DataError, match=r"114 spans .* tokenizer has 100"):
        span_corruption(rows, 0.15, 3.0, seed=0, sample_ids=np.arange(2), sentinels=sentinels[:100], eos_id=1)
    span_corruption(rows, 0.15, 3.0, seed=0, sample_ids=np.arange(2), sentinels=sentinels[:114], eos_id=1)
