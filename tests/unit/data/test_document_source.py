"""Documents corrupted one by one: nothing of one is in another's example, and nothing is lost."""

from itertools import pairwise

import numpy as np
import pytest

from fivefold.data.corruption import SpanCorruption
from fivefold.data.denoisers import UL2, Denoiser
from fivefold.data.documents import DocumentSource
from fivefold.data.tokens import Shard, TokenShards

LENGTHS = np.array([5, 1, 100, 34, 35, 0, 2, 70])
TEXT = np.arange(1000, 1000 + LENGTHS.sum())


def tokens_of(eos_id: int | None = None) -> TokenShards:
    """Documents over two shards; their tokens are all different, so that each can be traced."""
    borders = np.append(0, LENGTHS.cumsum())
    middle = borders[4]
    shards = [Shard(TEXT[:middle], borders[:5]), Shard(TEXT[middle:], borders[4:] - middle)]
    return TokenShards(shards, eos_id)


def source_of(denoisers, sentinels, **settings) -> DocumentSource:
    limits = {"input_length": 32, "target_length": 32}
    corruption = SpanCorruption(denoisers, **limits, seed=0, sentinels=sentinels, eos_id=1, **settings)
    return DocumentSource(tokens_of(), corruption, pad_id=0, seed=0)


def texts(source: DocumentSource, epoch: int, restore) -> list[list[int]]:
    """The raw text of each example of an epoch."""
    batch = source.batch(np.arange(source.samples_per_epoch) + epoch * source.samples_per_epoch)
    rows = zip(batch["input_ids"], batch["labels"], strict=True)
    return [restore(ids[ids != 0].tolist(), labels[labels != -100].tolist()) for ids, labels in rows]


@pytest.mark.parametrize("eos_id", [None, 1])
def test_borders_are_those_of_the_documents(eos_id) -> None:
    tokens = tokens_of(eos_id)
    borders = tokens.document_borders()
    marks = 0 if eos_id is None else 1
    np.testing.assert_array_equal(np.diff(borders), LENGTHS + marks)
    assert borders[-1] == tokens.num_tokens
    for document, (start, end) in zip(tokens.documents(), pairwise(borders.tolist()), strict=True):
        if end > start:
            (ids,) = tokens.windows(np.array([start]), np.array([end - start])).ids
            assert ids.tolist() == [*document, *[1] * marks]


def test_an_epoch_has_every_document_once_and_long_ones_in_windows(restore, sentinels) -> None:
    source = source_of([Denoiser(0.15, 3.0)], sentinels)  # whose windows have 34 tokens
    documents = [text.tolist() for text in np.split(TEXT, LENGTHS.cumsum()[:-1])]
    expected = [document[start : start + 34] for document in documents for start in range(0, len(document), 34)]
    for epoch in range(2):
        assert sorted(texts(source, epoch, restore)) == sorted(expected)


def test_every_document_meets_every_denoiser_once_an_epoch(sentinels) -> None:
    modes = np.arange(900, 907)
    source = source_of(UL2, sentinels, mode_ids=modes)
    batch = source.batch(np.arange(source.samples_per_epoch))
    met = np.zeros((len(TEXT), len(UL2)), np.int64)
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        seen = np.concatenate([ids, labels])
        met[seen[np.isin(seen, TEXT)] - TEXT[0], ids[0] - modes[0]] += 1
    assert (met == 1).all()


def test_noise_is_new_in_every_epoch(sentinels) -> None:
    source = source_of([Denoiser(0.15, 3.0)], sentinels)
    everything = np.arange(source.samples_per_epoch)
    inputs = [source.sides(everything, np.full_like(everything, epoch))[0] for epoch in range(2)]
    alike = [
        np.array_equal(first[:length], second[:length])
        for first, second, length in zip(inputs[0].ids, inputs[1].ids, inputs[0].lengths, strict=True)
        if length > 20
    ]
    assert not any(alike)
