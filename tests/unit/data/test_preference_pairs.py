"""Rows of a prompt and two answers, laid out by hand."""

import numpy as np
import pytest

from fivefold.data.preference_pairs import PreferenceSource, TokenPairs


def ids(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, np.int32) for row in rows]


PAIRS = TokenPairs(ids([5, 6, 1], [7, 1]), ids([8, 9, 1], [10, 1]), ids([11, 1], [12, 13, 14, 1]))


def batch_of(family, rows=(0, 1), **settings) -> dict[str, list]:
    source = PreferenceSource(PAIRS, family, pad_id=0, seed=0, shuffle=False, **settings)
    return {name: array.tolist() for name, array in source.batch(np.array(rows)).items()}


def test_t5_prompt_goes_in_and_both_answers_come_out():
    assert batch_of("t5") == {
        "input_ids": [[5, 6, 1, 0, 0, 0, 0, 0], [7, 1, 0, 0, 0, 0, 0, 0]],
        "segments": [[1, 1, 1, 0, 0, 0, 0, 0], [2, 2, 0, 0, 0, 0, 0, 0]],
        "labels": [[8, 9, 1, 11, 1, -100, -100, -100], [10, 1, 12, 13, 14, 1, -100, -100]],
        "answers": [[1, 1, 1, 2, 2, 0, 0, 0], [3, 3, 4, 4, 4, 4, 0, 0]],
        "memory_segments": [[1, 1, 1, 1, 1, 0, 0, 0], [2, 2, 2, 2, 2, 2, 0, 0]],
        "num_tokens": [[3, 2], [2, 4]],
    }


def test_t5_packed():
    reference = np.array([[-1, -2], [-3, -4]], np.float32)
    assert batch_of("t5", [0], capacity=(8, 16), reference_logps=reference) == {
        "input_ids": [[5, 6, 1, 7, 1]],
        "segments": [[1, 1, 1, 2, 2]],
        "labels": [[8, 9, 1, 11, 1, 10, 1, 12, 13, 14, 1]],
        "answers": [[1, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4]],
        "memory_segments": [[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]],
        "num_tokens": [[3, 2], [2, 4]],
        "reference_logps": [[-1, -2], [-3, -4]],
    }


def test_decoder_answers_both_go_on_from_the_prompt():
    assert batch_of("llama", [0]) == {
        "input_ids": [[5, 6, 1, 8, 9, 1, 11]],
        "labels": [[-100, -100, 8, 9, 1, 11, 1]],
        "segments": [[1, 1, 1, 1, 1, 1, 1]],
        "answers": [[0, 0, 1, 1, 1, 2, 2]],
        "position_ids": [[0, 1, 2, 3, 4, 2, 3]],
        "num_tokens": [[3, 2]],
    }


def test_decoder_packed():
    packed = batch_of("llama", [0], capacity=(16,))
    assert packed["input_ids"] == [[5, 6, 1, 8, 9, 1, 11, 7, 1, 10, 1, 12, 13, 14]]
    assert packed["answers"] == [[0, 0, 1, 1, 1, 2, 2, 0, 3, 3, 4, 4, 4, 4]]
    assert packed["position_ids"] == [[0, 1, 2, 3, 4, 2, 3, 0, 1, 2, 1, 2, 3, 4]]


def test_every_epoch_has_each_pair_once_and_its_own_reference():
    generator = np.random.default_rng(0)
    texts = [
        [np.array([number] * length, np.int32) for number, length in enumerate(generator.integers(1, 9, 30), 2)]
    ] * 3
    reference = np.arange(60, dtype=np.float32).reshape(30, 2)
    source = PreferenceSource(TokenPairs(*texts), "t5", pad_id=0, seed=0, capacity=(20, 40), reference_logps=reference)
    orders = []
    for epoch in range(3):
        first = epoch * (source.samples_per_epoch or 0)
        orders.append([source.batch(np.array([first + row])) for row in range(source.samples_per_epoch or 0)])
        seen = np.concatenate([batch["reference_logps"] for batch in orders[-1]])
        assert sorted(seen[:, 0]) == list(range(0, 60, 2))
        for batch in orders[-1]:
            firsts = [
                batch["input_ids"][0][batch["segments"][0] == k][0] for k in range(1, len(batch["num_tokens"]) + 1)
            ]
            assert batch["reference_logps"][:, 0].tolist() == [2 * (first - 2) for first in firsts]
    assert [batch["input_ids"].tolist() for batch in orders[0]] != [batch["input_ids"].tolist() for batch in orders[1]]
    assert "30 pairs, packed into" in source.describe()


@pytest.mark.parametrize(("family", "lengths"), [("t5", [[3, 5], [2, 6]]), ("llama", [[7], [7]])])
def test_row_lengths(family, lengths):
    assert PAIRS.row_lengths(family).tolist() == lengths
