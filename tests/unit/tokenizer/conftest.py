"""Tokenizers of both kinds, trained on a little text in two languages."""

import random
from typing import Any

import pytest

from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer


def make_texts(count: int) -> list[str]:
    """Lines of made-up words, with some that tests look for among them."""
    draws = random.Random(0)
    syllables = [consonant + vowel for consonant in "bdfghklmnprst" for vowel in "aeiou"]
    english = ["".join(draws.choices(syllables, k=draws.randint(1, 4))) for _ in range(300)] + ["king", "queen"] * 5
    characters = [chr(0x4E00 + draws.randrange(20_000)) for _ in range(60)]
    chinese = ["".join(draws.choices(characters, k=draws.randint(1, 3))) for _ in range(300)] + ["今天", "天气"] * 5
    texts = []
    for number in range(count):
        words, space, stop = (english, " ", ". ") if number % 2 else (chinese, "", "\uff0c")
        clauses = [space.join(draws.choices(words, k=5)) for _ in range(4)]
        texts.append(stop.join(clauses) + f" {number}\n\tthe end")
    return texts


TEXTS = make_texts(600)


@pytest.fixture(scope="session")
def small_texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def small_settings() -> dict[str, Any]:
    """Settings for a vocabulary of 300 characters and pieces beside the rest."""
    return {"output_dir": "", "vocab_size": 262 + 20 + 300, "num_sentinels": 20}


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, small_settings: dict[str, Any]) -> Any:
    return train_tokenizer(TEXTS, TokenizerSettings(**small_settings, algorithm=request.param)).tokenizer
