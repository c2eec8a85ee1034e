"""What several tests of batches need: the way back from a corruption, and a slow corruption to compare with."""

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest

from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

NUM_SENTINELS = 300
SENTINELS = np.arange(31_999, 31_999 - NUM_SENTINELS, -1)
EOS = 1
_IS_SENTINEL = frozenset(SENTINELS.tolist())


@pytest.fixture
def sentinels() -> np.ndarray:
    """As T5 has them: counting down from the last id of the vocabulary."""
    return SENTINELS


def _restore(inputs: list[int], targets: list[int]) -> list[int]:
    """Put each hidden span back in place of its sentinel."""
    assert inputs[-1] == EOS
    assert targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in _IS_SENTINEL:
            assert token not in spans, "a sentinel used twice"
            last = spans[token] = []
        else:
            last.append(token)
    assert list(spans) == SENTINELS[: len(spans)].tolist(), "sentinels out of order"
    text: list[int] = []
    for token in inputs[:-1]:
        text += spans.pop(token) if token in _IS_SENTINEL else [token]
    assert not spans, "a span that no input asks for"
    return text


@pytest.fixture
def restore() -> Callable[[list[int], list[int]], list[int]]:
    """The inverse of span corruption."""
    return _restore


def _slow_lengths(total: int, parts: int, random: Random) -> list[int]:
    flags = [1] * (parts - 1) + [0] * (total - parts)
    random.shuffle(flags)
    lengths = [1]
    for starts_new in flags:
        if starts_new:
            lengths.append(1)
        else:
            lengths[-1] += 1
    return lengths


def _slow_corruption(text: list[int], density: float, span: float, random: Random) -> tuple[list[int], list[int]]:
    """One example at a time, token by token, straight from the description in the T5 paper."""
    length = len(text)
    num_noise = min(max(round(length * density), 1), length - 1)
    num_spans = min(max(round(num_noise / span), 1), num_noise, length - num_noise)
    noise_lengths = _slow_lengths(num_noise, num_spans, random)
    text_lengths = _slow_lengths(length - num_noise, num_spans, random)
    inputs, targets, place = [], [], 0
    for number in range(num_spans):
        inputs += text[place : place + text_lengths[number]]
        place += text_lengths[number]
        inputs.append(int(SENTINELS[number]))
        targets.append(int(SENTINELS[number]))
        targets += text[place : place + noise_lengths[number]]
        place += noise_lengths[number]
    return [*inputs, EOS], [*targets, EOS]


@pytest.fixture
def slow_corruption() -> Callable[[list[int], float, float, Random], tuple[list[int], list[int]]]:
    """A span corruption of its own making, to compare with."""
    return _slow_corruption


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """400 different short documents."""
    return [f"document {number}: the answer to {number * number} is {number % 7} apples." for number in range(400)]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Any:
    """A tokenizer with 100 sentinels and UL2's mode tokens."""
    return train_tokenizer(texts, TokenizerSettings(output_dir="", vocab_size=500, num_sentinels=100)).tokenizer
