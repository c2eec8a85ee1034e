"""Windows: every token once an epoch, in an order that follows from the seed."""

import numpy as np
import pytest

from fivefold.data.corruption import Corruption, PrefixSplit, SpanCorruption, WholeText
from fivefold.data.denoisers import UL2, Denoiser
from fivefold.data.rows import Rows
from fivefold.data.tokens import TokenShards
from fivefold.data.windows import WindowSource

NUM_TOKENS = 1003


def numbered_tokens(num_tokens: int = NUM_TOKENS) -> TokenShards:
    """A corpus whose tokens are all different, so that each can be traced."""
    return TokenShards.of_documents(np.split(np.arange(1000, 1000 + num_tokens), [100, 107, 500]))


def span(sentinels: np.ndarray, seed: int = 0) -> SpanCorruption:
    limits = {"input_length": 32, "target_length": None}
    return SpanCorruption([Denoiser(0.15, 3.0)], **limits, seed=seed, sentinels=sentinels, eos_id=1)


def ul2(sentinels: np.ndarray, seed: int = 0) -> SpanCorruption:
    return SpanCorruption(UL2, input_length=32, target_length=32, seed=seed, sentinels=sentinels, eos_id=1)


def texts(source: WindowSource, samples: np.ndarray, restore) -> list[list[int]]:
    """The raw text of each sample, recovered from its batch."""
    batch = source.batch(samples)
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        found.append(restore(ids[ids != 0].tolist(), labels[labels != -100].tolist()))
    return found


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_token_once(shuffle: bool, restore, sentinels) -> None:
    source = WindowSource(numbered_tokens(), span(sentinels), pad_id=0, seed=5, shuffle=shuffle)
    num_samples = source.samples_per_epoch
    assert num_samples is not None
    orders = []
    for epoch in range(3):
        samples = np.arange(epoch * num_samples, (epoch + 1) * num_samples)
        windows = texts(source, samples, restore)
        seen = np.concatenate(windows)
        np.testing.assert_array_equal(np.sort(seen), np.arange(1000, 1000 + NUM_TOKENS))
        # A window is a stretch of the circle.
        assert all((np.diff(window) % NUM_TOKENS == 1).all() for window in windows)
        orders.append([window[0] for window in windows])
    if shuffle:
        borders = [set(order) for order in orders]
        assert len(borders[0] & borders[1]) < num_samples / 2, "window borders move between epochs"
        assert all(order != sorted(order) for order in orders)
    else:
        assert orders[0] == orders[1] == sorted(orders[0])


@pytest.mark.parametrize("shuffle", [True, False])
def test_causal_windows_tile_the_corpus(shuffle: bool) -> None:
    source = WindowSource(numbered_tokens(), WholeText(input_length=32), pad_id=0, seed=5, shuffle=shuffle)
    assert source.samples_per_epoch == -(-NUM_TOKENS // 32)
    for epoch in range(3):
        batch = source.batch(np.arange(32) + epoch * 32)
        real = batch["labels"] != -100
        seen = batch["input_ids"][real]
        np.testing.assert_array_equal(seen, batch["labels"][real])
        np.testing.assert_array_equal(seen if not shuffle else np.sort(seen), np.arange(1000, 1000 + NUM_TOKENS))
        # 1,003 tokens are 31 windows of 32 and one of 11, whose place is the only one to be filled up.
        assert sorted(real.sum(axis=1)) == [11, *[32] * 31]
        assert (batch["input_ids"][~real] == 0).all()
        np.testing.assert_array_equal(batch["attention_mask"], real)


def test_every_denoiser_walks_the_corpus_in_its_own_windows(restore, sentinels) -> None:
    corruption = ul2(sentinels)
    source = WindowSource(numbered_tokens(), corruption, pad_id=0, seed=5)
    windows_each = -(-NUM_TOKENS // corruption.window_lengths)
    samples = np.arange(7 * int(windows_each.max()))
    kinds, windows = corruption.kinds(samples), texts(source, samples, restore)
    for kind, num_windows in enumerate(windows_each):
        mine = [window for window, its_kind in zip(windows, kinds, strict=True) if its_kind == kind]
        seen = np.sort(np.concatenate(mine[:num_windows]))
        np.testing.assert_array_equal(seen, np.arange(1000, 1000 + NUM_TOKENS))


@pytest.mark.parametrize(
    "make",
    [
        span,
        ul2,
        lambda _: PrefixSplit(input_length=32, target_length=None, seed=0, eos_id=1),
        lambda _: WholeText(input_length=32),
    ],
)
def test_batches_of_any_size_hold_the_same_samples(make, sentinels) -> None:
    source = WindowSource(numbered_tokens(), make(sentinels), pad_id=0, seed=5)
    together = source.batch(np.arange(100, 116))
    for row, sample in enumerate(range(100, 116)):
        alone = source.batch(np.array([sample]))
        for name in ("input_ids", "labels"):
            width = alone[name].shape[1]
            np.testing.assert_array_equal(alone[name][0], together[name][row, :width])
            assert (together[name][row, width:] == (0 if name == "input_ids" else -100)).all()


def test_seed_decides_windows_and_noise(sentinels) -> None:
    def batch(seed: int) -> list[list[int]]:
        source = WindowSource(numbered_tokens(), span(sentinels, seed), pad_id=0, seed=seed)
        return source.batch(np.arange(8))["input_ids"].tolist()

    assert batch(1) == batch(1)
    assert batch(1) != batch(2)


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 34])
def test_corpora_no_longer_than_a_window(num_tokens: int, restore, sentinels) -> None:
    assert span(sentinels).window_lengths[0] == 34
    source = WindowSource(numbered_tokens(num_tokens), span(sentinels), pad_id=0, seed=0)
    assert source.samples_per_epoch == 1
    for epoch in range(3):
        (window,) = texts(source, np.array([epoch]), restore)
        assert sorted(window) == list(range(1000, 1000 + num_tokens))


def test_full_windows_have_the_limits_exactly_and_no_mask(sentinels) -> None:
    length = int(span(sentinels).window_lengths[0])
    source = WindowSource(numbered_tokens(length * 20), span(sentinels), pad_id=0, seed=0)
    batch = source.batch(np.arange(20))
    assert set(batch) == {"input_ids", "labels"}
    assert batch["input_ids"].shape == (20, 32)


def test_samples_per_epoch_of_a_mixture_is_a_corpus_of_tokens(sentinels) -> None:
    class TwoLengths(Corruption):
        window_lengths = np.array([10, 30])

        def kinds(self, sample_ids: np.ndarray) -> np.ndarray:
            return sample_ids % 2

        def corrupted(self, rows: Rows, sample_ids: np.ndarray) -> tuple[Rows, Rows]:
            return rows, rows

    source = WindowSource(numbered_tokens(1200), TwoLengths(), pad_id=0, seed=0)
    assert source.samples_per_epoch == 60
    assert source.places(np.arange(60))[1].sum() == 1200
