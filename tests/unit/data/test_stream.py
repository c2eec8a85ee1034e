"""Streams: the same samples as from memory, and an exact place to resume."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fivefold.data.corruption import PrefixSplit, SpanCorruption
from fivefold.data.denoisers import UL2
from fivefold.data.stream import StreamSource, TokenStream
from fivefold.data.tokens import TokenShards
from fivefold.data.windows import WindowSource
from fivefold.errors import DataError


class ListReader:
    """Records of a list, with the corpus reader's way of keeping its place."""

    def __init__(self, documents: list[list[int]]):
        self.documents, self.place, self.saved = documents, 0, None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self.place, self.saved = self.saved or 0, None
        while self.place < len(self.documents):
            self.place += 1
            yield {"ids": self.documents[self.place - 1]}

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place if self.saved is None else self.saved}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.saved = state["place"]


def encode(records: list[dict[str, Any]]) -> list[np.ndarray]:
    return [np.array(record["ids"]) for record in records]


def some_documents() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [generator.integers(100, 30_000, length).tolist() for length in generator.integers(0, 60, 41)]


def stream(block_size: int = 5, shuffle: bool = False, eos_id: int | None = None, seed: int = 0) -> TokenStream:
    reader = ListReader(some_documents())
    return TokenStream(reader, encode, block_size=block_size, shuffle=shuffle, seed=seed, eos_id=eos_id)


def ul2(sentinels: np.ndarray) -> SpanCorruption:
    return SpanCorruption(UL2, input_length=32, target_length=32, seed=0, sentinels=sentinels, eos_id=1)


@pytest.mark.parametrize("block_size", [1, 5, 41, 1000])
@pytest.mark.parametrize("eos_id", [None, 1])
def test_in_order_the_stream_is_the_documents_end_to_end(block_size: int, eos_id: int | None) -> None:
    marks = [] if eos_id is None else [eos_id]
    one_pass = [token for document in some_documents() for token in [*document, *marks]]
    tokens, taken = stream(block_size, eos_id=eos_id), []
    while len(taken) < 3 * len(one_pass):
        taken += tokens.take(37).tolist()
    assert taken[: 3 * len(one_pass)] == one_pass * 3


def test_shuffled_every_pass_has_the_same_tokens_in_another_order() -> None:
    one_pass = [token for document in some_documents() for token in document]
    tokens = stream(shuffle=True)
    passes = [tokens.take(len(one_pass)).tolist() for _ in range(2)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(one_pass)
    assert passes[0] != passes[1]
    assert stream(shuffle=True, seed=1).take(len(one_pass)).tolist() != passes[0]
    assert stream(shuffle=True).take(len(one_pass)).tolist() == passes[0]


@pytest.mark.parametrize("block_size", [1, 5, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_anywhere_it_goes_on_exactly(block_size: int, shuffle: bool, sentinels) -> None:
    def source() -> StreamSource:
        return StreamSource(stream(block_size, shuffle), ul2(sentinels), pad_id=0)

    uninterrupted, batches, states = source(), [], []
    for step in range(60):
        states.append(json.loads(json.dumps(uninterrupted.state_dict())))  # as a checkpoint keeps it
        batches.append(uninterrupted.batch(np.arange(4 * step, 4 * step + 4)))
    for first in range(0, 60, 7):
        resumed = source()
        resumed.load_state_dict(states[first])
        for step in range(first, 60):
            batch = resumed.batch(np.arange(4 * step, 4 * step + 4))
            for name, array in batches[step].items():
                np.testing.assert_array_equal(batch[name], array)


def test_samples_left_out_are_passed_over(sentinels) -> None:
    together = StreamSource(stream(), ul2(sentinels), pad_id=0).batch(np.arange(12))
    split = StreamSource(stream(), ul2(sentinels), pad_id=0)
    for samples in ([1, 2], [5], [8, 11]):
        batch = split.batch(np.array(samples))
        for row, sample in enumerate(samples):
            real = batch["labels"][row][batch["labels"][row] != -100]
            expected = together["labels"][sample][together["labels"][sample] != -100]
            np.testing.assert_array_equal(real, expected)


def test_a_stream_in_order_equals_windows_in_order() -> None:
    corruption = PrefixSplit(input_length=16, target_length=None, seed=0, eos_id=1)
    documents = [np.array(document, np.int64) for document in some_documents()]
    windows = WindowSource(TokenShards.of_documents(documents), corruption, pad_id=0, seed=0, shuffle=False)
    samples = np.arange(windows.samples_per_epoch - 1)
    streamed = StreamSource(stream(), corruption, pad_id=0).batch(samples)
    for name, array in windows.batch(samples).items():
        np.testing.assert_array_equal(streamed[name], array)


def test_going_back_is_refused(sentinels) -> None:
    source = StreamSource(stream(), ul2(sentinels), pad_id=0)
    source.batch(np.arange(4))
    for samples in ([3], [4, 4], [6, 5]):
        with pytest.raises(ValueError, match="stream at sample 4"):
            source.batch(np.array(samples))


@pytest.mark.parametrize("documents", [[], [[]], [[], [], []]])
def test_nothing_to_read_is_an_error_not_a_hang(documents: list[list[int]]) -> None:
    empty = TokenStream(ListReader(documents), encode, block_size=2, shuffle=False, seed=0)
    with pytest.raises(DataError, match="no text to train on"):
        empty.take(1)
