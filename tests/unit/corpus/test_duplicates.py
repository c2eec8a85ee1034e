"""Duplicates: the estimate is the true overlap, planted ones are found, others stay, memory per document is small."""

import random
import tracemalloc

import numpy as np
import pytest

from fivefold.corpus.duplicates import (
    NUM_BANDS,
    NUM_HASHES,
    NearDuplicates,
    Signature,
    band_rows,
    shingle_hashes,
    signatures,
)

CHARACTERS = [chr(0x4E00 + number) for number in range(3000)]


def document(seed: int, length: int = 400) -> str:
    return "".join(random.Random(seed).choices(CHARACTERS, k=length))


def edited(text: str, every: int) -> str:
    """The text with one in so many characters replaced."""
    return "".join("字" if number % every == every - 1 else one for number, one in enumerate(text))


def overlap(left: str, right: str) -> float:
    """Share of common stretches of five characters, from their definition."""
    shingles = [{text[place : place + 5] for place in range(len(text) - 4)} for text in (left, right)]
    return len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


def test_hashes_are_those_of_the_stretches() -> None:
    text = "天地玄黄宇宙洪荒天地玄黄宇宙"
    hashes = shingle_hashes(text)
    stretches = [text[place : place + 5] for place in range(len(text) - 4)]
    assert len(hashes) == len(stretches)
    assert len(set(hashes.tolist())) == len(set(stretches))
    assert [hashes.tolist().index(one) for one in hashes.tolist()] == [stretches.index(one) for one in stretches]
    np.testing.assert_array_equal(shingle_hashes("Ab c\ndE f"), shingle_hashes("abcdef"))
    assert len(shingle_hashes("")) == len(shingle_hashes("一")) == 1


@pytest.mark.parametrize("every", [200, 50, 20, 8])
def test_equal_minima_estimate_the_overlap(every: int) -> None:
    texts = [document(seed) for seed in range(40)]
    pairs = [(text, edited(text, every)) for text in texts]
    found = signatures([text for pair in pairs for text in pair], 0.8)
    equal = [
        np.mean(np.frombuffer(left.minima, np.uint8) == np.frombuffer(right.minima, np.uint8))
        for left, right in zip(found[::2], found[1::2], strict=True)
    ]
    # 40 estimates from 128 hashes each deviate by less than 0.5 / sqrt(40 * 128) = 0.007 on average; one lowest byte
    # in 256 is equal by chance.
    assert np.mean(equal) == pytest.approx(np.mean([overlap(*pair) for pair in pairs]), abs=0.03)


def test_signatures_do_not_depend_on_their_company() -> None:
    texts = [document(1), "", document(2), "短"]
    together = signatures(texts, 0.8)
    for text, signature in zip(texts, together, strict=True):
        (alone,) = signatures([text], 0.8)
        assert alone.minima == signature.minima
        np.testing.assert_array_equal(alone.bands, signature.bands)
    assert signatures([], 0.8) == []


def test_planted_duplicates_are_found_and_nothing_else() -> None:
    originals = [document(seed) for seed in range(2000)]
    planted = [edited(text, 100) for text in originals[:300]]
    assert min(overlap(*pair) for pair in zip(originals, planted, strict=False)) > 0.88
    known = NearDuplicates(0.8)
    assert all(known.add_new(one) for one in signatures(originals, 0.8))
    assert sum(not known.add_new(one) for one in signatures(planted, 0.8)) == 300
    assert all(known.add_new(one) for one in signatures([document(seed) for seed in range(5000, 6000)], 0.8))


def test_the_threshold_divides() -> None:
    text, other = document(1, 5000), edited(document(1, 5000), 45)
    assert 0.79 < overlap(text, other) < 0.83
    for threshold, is_new in ((0.5, False), (0.7, False), (0.9, True), (1.0, True)):
        known = NearDuplicates(threshold)
        first, second = signatures([text, other], threshold)
        assert known.add_new(first)
        assert not known.add_new(first)
        assert known.add_new(second) == is_new, threshold


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_find_nine_pairs_in_ten_at_the_threshold(threshold: float) -> None:
    rows = band_rows(threshold)
    assert 1 <= rows <= NUM_HASHES // NUM_BANDS
    assert 1 - (1 - threshold**rows) ** NUM_BANDS >= 0.9


def test_documents_that_share_a_band_do_not_pile_up() -> None:
    """Bands all equal, minima all different: only so many are compared, and time stays linear."""
    bands = np.arange(NUM_BANDS, dtype=np.uint64)
    generator = np.random.default_rng(0)
    known = NearDuplicates(0.8)
    for _ in range(300):
        assert known.add_new(Signature(bands, generator.bytes(NUM_HASHES)))
    assert known._num_entries <= 64 * NUM_BANDS


def test_memory_per_document() -> None:
    generator = np.random.default_rng(0)
    tracemalloc.start()
    known = NearDuplicates(0.8)
    count = 8_000
    for _ in range(count):
        bands = generator.integers(0, 2**64, NUM_BANDS, dtype=np.uint64)
        assert known.add_new(Signature(bands, generator.bytes(NUM_HASHES)))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / count < 700
