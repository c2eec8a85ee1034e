"""Sentinels by name, in our tokenizers and in others' layouts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fivefold.data.denoisers import UL2
from fivefold.data.spans import noise_counts, raw_lengths
from fivefold.tokenizer.load import load_tokenizer
from fivefold.tokenizer.special_tokens import sentinel_ids, sentinels_needed


def word_level(tokens: list[str]) -> Any:
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<unk>")))


def test_flan_t5(real_t5: Path) -> None:
    tokenizer = load_tokenizer(real_t5)
    assert sentinel_ids(tokenizer).tolist() == tokenizer.convert_tokens_to_ids([f"<extra_id_{n}>" for n in range(100)])
    assert sentinel_ids(tokenizer).tolist() == list(range(32099, 31999, -1)), "facts/t5.md: descending from 32099"


@pytest.mark.parametrize("name", ["<extra_id_{}>", "\u2581<extra_id_{}>"], ids=["T5", "mT5"])
def test_layouts_of_others(name: str) -> None:
    ascending = word_level(["<unk>", *(name.format(number) for number in range(5)), "x"])
    descending = word_level(["<unk>", *(name.format(number) for number in reversed(range(5)))])
    assert sentinel_ids(ascending).tolist() == [1, 2, 3, 4, 5]
    assert sentinel_ids(descending).tolist() == [5, 4, 3, 2, 1]


def test_gaps_and_absence() -> None:
    assert sentinel_ids(word_level(["<unk>", "<extra_id_0>", "<extra_id_2>"])).tolist() == [1]
    none = sentinel_ids(word_level(["<unk>", "<extra_id_>", "extra_id_0", "<extra_id_0>>"]))
    assert none.tolist() == []
    assert none.dtype == np.int64


def test_enough_sentinels_for_every_denoiser_of_ul2() -> None:
    needed = {}
    for max_length in (16, 100, 512, 1024, 4096):
        for denoiser in UL2:
            raw, _ = raw_lengths(max_length, denoiser.noise_density, denoiser.mean_span_length)
            _, num_spans = noise_counts(raw, denoiser.noise_density, denoiser.mean_span_length)
            needed[max_length, denoiser] = int(num_spans[0])
            assert sentinels_needed(max_length) >= num_spans[0]
    most = max(spans for (max_length, _), spans in needed.items() if max_length == 4096)
    assert sentinels_needed(4096) <= most * 1.01 + 1, "and hardly more than the densest of them needs"
