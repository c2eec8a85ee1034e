"""Supervised pairs: cut by tokens, padded, every pair once an epoch."""

import numpy as np

from fivefold.data.pairs import PairSource


def make(
    num_pairs: int = 20,
    seed: int = 0,
    shuffle: bool = True,
    lengths: tuple[int, int] = (8, 12),
) -> PairSource:
    prompts = [np.arange(100 * (pair + 1), 100 * (pair + 1) + pair) for pair in range(num_pairs)]
    responses = [np.array([pair + 10] * (num_pairs - pair)) for pair in range(num_pairs)]
    return PairSource(
        *(prompts, responses),
        input_length=lengths[0],
        target_length=lengths[1],
        eos_id=1,
        pad_id=0,
        seed=seed,
        shuffle=shuffle,
    )


def test_both_sides_are_cut_and_keep_their_end_mark() -> None:
    source = make(shuffle=False)
    batch = source.batch(np.arange(20))
    assert batch["input_ids"].shape == (20, 8)
    assert batch["labels"].shape == (20, 16)  # 12, rounded up to a multiple of 8
    for pair in range(20):
        inputs = batch["input_ids"][pair][batch["attention_mask"][pair] == 1].tolist()
        labels = batch["labels"][pair][batch["labels"][pair] != -100].tolist()
        assert inputs == [*range(100 * (pair + 1), 100 * (pair + 1) + min(pair, 7)), 1]
        assert labels == [*[pair + 10] * min(20 - pair, 11), 1]
    assert (source.num_cut_prompts, source.num_cut_responses) == (12, 9)


def test_every_epoch_has_each_pair_once_in_a_new_order() -> None:
    source = make()
    orders = []
    for epoch in range(3):
        labels = source.batch(np.arange(epoch * 20, epoch * 20 + 20))["labels"]
        orders.append(labels[:, 0].tolist())
        assert sorted(orders[-1]) == list(range(10, 30))
    assert len({tuple(order) for order in orders}) == 3
    assert make(seed=1).batch(np.arange(20))["labels"][:, 0].tolist() != orders[0]


def test_a_pair_is_the_same_in_any_batch() -> None:
    source = make()
    together = source.batch(np.arange(30))
    for sample in (0, 13, 29):
        alone = source.batch(np.array([sample]))
        for name, fill in (("input_ids", 0), ("labels", -100)):
            width = alone[name].shape[1]
            assert together[name][sample, :width].tolist() == alone[name][0].tolist()
            assert (together[name][sample, width:] == fill).all()


def test_empty_sides_are_just_the_end_mark() -> None:
    empty = [np.zeros(0, np.int64)]
    source = PairSource(empty, empty, input_length=8, target_length=8, eos_id=1, pad_id=0, seed=0)
    batch = source.batch(np.arange(2))
    assert batch["input_ids"].tolist() == batch["labels"].tolist() == [[1], [1]]
