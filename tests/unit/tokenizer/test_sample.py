"""The sample of a stream: as large as allowed, fair, the same each time."""

import random

import numpy as np
import pytest

from fivefold.tokenizer.sample import CHUNK_CHARACTERS, draw_sample


def words(count: int) -> list[str]:
    return [f"{number:08d}" for number in range(count)]


def draw(texts: list[str], sample_characters: int, seed: int = 0, read_characters: int = 10**9):
    return draw_sample(texts, sample_characters=sample_characters, read_characters=read_characters, seed=seed)


def test_what_fits_is_kept_whole() -> None:
    sample = draw(words(100), 800)
    assert sample.chunks == words(100)
    assert (sample.kept_characters, sample.read_characters, sample.was_cut) == (800, 800, False)


def test_the_smallest_draws_stay() -> None:
    texts = words(5000)
    sample = draw(texts, 8 * 700, seed=3)
    draws = random.Random(3)
    ranked = sorted(texts, key={text: draws.random() for text in texts}.__getitem__)
    assert sample.chunks == sorted(ranked[:700])


def test_every_place_of_the_stream_is_equally_likely() -> None:
    texts = words(400)
    counts = np.zeros(400)
    for seed in range(400):
        counts[[int(text) for text in draw(texts, 800, seed).chunks]] += 1
    # Each text is in a quarter of 400 samples: 100 times, with a standard deviation of 8.7.
    assert counts.sum() == 400 * 100
    assert abs(counts - 100).max() < 5 * 8.7
    assert abs(counts.reshape(4, 100).mean(axis=1) - 100).max() < 5


@pytest.mark.parametrize("length", [CHUNK_CHARACTERS, CHUNK_CHARACTERS + 1, 50 * CHUNK_CHARACTERS])
def test_long_documents_are_cut_and_lose_nothing(length: int) -> None:
    text = "".join(random.Random(0).choices("abcdef", k=length))
    sample = draw([text], 10**9)
    assert "".join(sample.chunks) == text
    assert max(map(len, sample.chunks)) <= CHUNK_CHARACTERS


def test_a_budget_smaller_than_one_document() -> None:
    sample = draw(["x" * 10**6] * 3, 10 * CHUNK_CHARACTERS)
    assert 0 < sample.kept_characters <= 10 * CHUNK_CHARACTERS
    assert sample.read_characters == 3 * 10**6


def test_reading_stops_at_its_limit() -> None:
    def endless():
        while True:
            yield "12345678"

    sample = draw_sample(endless(), sample_characters=80, read_characters=8000, seed=0)
    assert (sample.read_characters, sample.kept_characters, sample.was_cut) == (8000, 80, True)


def test_seeds_differ_and_repeat() -> None:
    assert draw(words(1000), 80, seed=1) == draw(words(1000), 80, seed=1)
    assert draw(words(1000), 80, seed=1) != draw(words(1000), 80, seed=2)
