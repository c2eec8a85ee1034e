"""Padded or packed, an epoch has every example once, as it is told in that epoch."""

from collections import Counter

import numpy as np
import pytest

from fivefold.data.corruption import SpanCorruption
from fivefold.data.denoisers import UL2
from fivefold.data.documents import DocumentSource
from fivefold.data.examples import ExampleSource, PackedSource
from fivefold.data.pairs import PairSource
from fivefold.data.tokens import TokenShards

Example = tuple[tuple[int, ...], tuple[int, ...]]


def pairs_of(shuffle: bool, sentinels: np.ndarray) -> ExampleSource:
    prompts = [np.arange(100 * (pair + 1), 100 * (pair + 1) + pair) for pair in range(20)]
    responses = [np.full(20 - pair, pair + 10) for pair in range(20)]
    limits = {"input_length": 24, "target_length": 32}
    return PairSource(prompts, responses, **limits, eos_id=1, pad_id=0, seed=0, shuffle=shuffle)


def documents_of(shuffle: bool, sentinels: np.ndarray) -> ExampleSource:
    lengths = np.random.default_rng(0).integers(1, 40, 30)
    tokens = TokenShards.of_documents(np.split(np.arange(1000, 1000 + lengths.sum()), lengths.cumsum()[:-1]))
    limits = {"input_length": 24, "target_length": 32}
    corruption = SpanCorruption(UL2, **limits, seed=3, sentinels=sentinels, eos_id=1, mode_ids=np.arange(900, 907))
    return DocumentSource(tokens, corruption, pad_id=0, seed=0, shuffle=shuffle)


@pytest.fixture(params=[pairs_of, documents_of])
def make(request, sentinels):
    """Examples of one kind or the other, shuffled or not."""
    return lambda shuffle=True: request.param(shuffle, sentinels)


def padded_examples(source: ExampleSource, epoch: int) -> Counter[Example]:
    """Those of one epoch, free of padding."""
    batch = source.batch(np.arange(source.samples_per_epoch) + epoch * source.samples_per_epoch)
    sides = zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
    return Counter((tuple(ids[mask == 1]), tuple(labels[labels != -100])) for ids, mask, labels in sides)


def packed_examples(source: PackedSource, epoch: int) -> Counter[Example]:
    """Those of one epoch, by the segments of the rows."""
    batch = source.batch(np.arange(source.samples_per_epoch) + epoch * source.samples_per_epoch)
    assert ((batch["labels"] == -100) == (batch["decoder_segments"] == 0)).all()
    assert (batch["input_ids"][batch["segments"] == 0] == 0).all()
    found: Counter[Example] = Counter()
    for row in range(source.samples_per_epoch):
        ids, labels, segments, decoder_segments = (
            batch[name][row] for name in ("input_ids", "labels", "segments", "decoder_segments")
        )
        # An example's tokens stand together, in both sides at the same place.
        np.testing.assert_array_equal(np.unique(segments[segments > 0]), np.unique(decoder_segments[labels != -100]))
        assert (np.diff(segments[segments > 0]) >= 0).all()
        for segment in range(1, segments.max() + 1):
            found[tuple(ids[segments == segment]), tuple(labels[decoder_segments == segment])] += 1
    return found


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_packed_epoch_holds_the_examples_of_a_padded_one(make, shuffle) -> None:
    packed = PackedSource(make(shuffle), (24, 32))
    batch = packed.batch(np.arange(packed.samples_per_epoch))
    assert batch["input_ids"].shape[1] <= 24
    assert batch["labels"].shape[1] <= 32
    assert packed.samples_per_epoch < 0.8 * make().samples_per_epoch
    for epoch in (0, 2):
        expected = padded_examples(make(), epoch)
        assert expected.total() == make().samples_per_epoch
        assert packed_examples(packed, epoch) == expected


def test_lengths_are_those_of_the_examples(make) -> None:
    source = make(shuffle=False)
    batch = source.batch(np.arange(source.samples_per_epoch))
    lengths = np.stack([batch["attention_mask"].sum(1), (batch["labels"] != -100).sum(1)], 1)
    np.testing.assert_array_equal(source.lengths, lengths)


def test_every_epoch_has_a_new_order_and_the_seed_decides_it(make) -> None:
    for source in (make(), PackedSource(make(), (24, 32))):
        numbers = np.arange(source.samples_per_epoch)
        first, second = (source.batch(numbers + start)["input_ids"] for start in (0, source.samples_per_epoch))
        assert first.tolist() != second.tolist()
        assert first.tolist() == source.batch(numbers)["input_ids"].tolist()


def test_a_row_is_the_same_in_any_batch(make) -> None:
    source = PackedSource(make(), (24, 32))
    together = source.batch(np.arange(20))
    for sample in (0, 7, 19):
        for name, alone in source.batch(np.array([sample])).items():
            width = alone.shape[1]
            assert together[name][sample, :width].tolist() == alone[0].tolist()
            assert (together[name][sample, width:] == (-100 if name == "labels" else 0)).all()


def test_it_says_how_full_the_rows_are(make) -> None:
    examples = make()
    source = PackedSource(examples, (24, 32))
    batch = source.batch(np.arange(source.samples_per_epoch))
    inputs = (batch["segments"] > 0).sum() / (24 * source.samples_per_epoch)
    assert f"rows of 24 and 32 tokens, {inputs:.1%} and " in source.describe()
    assert source.describe().startswith(examples.describe())
