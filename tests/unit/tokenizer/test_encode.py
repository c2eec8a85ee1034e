"""Corpus encoding: text only, whatever it says and whatever was set on the tokenizer."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.load import load_tokenizer
from fivefold.tokenizer.special_tokens import sentinel_ids

LITERALS = "one </s> two <extra_id_0><extra_id_12> <pad> three"


def test_nothing_is_added_and_nothing_is_special(tokenizer: Any) -> None:
    (ids,) = CorpusEncoder(tokenizer)([LITERALS])
    assert ids.dtype == np.int32
    assert not np.isin(ids, tokenizer.all_special_ids).any()
    assert tokenizer.decode(ids) == LITERALS
    plain = "今天 king 12"
    (ids,) = CorpusEncoder(tokenizer)([plain])
    assert ids.tolist() == tokenizer(plain, add_special_tokens=False).input_ids


def test_settings_of_the_tokenizer_stay_where_they_are(tokenizer: Any) -> None:
    text = "king and queen " * 50
    expected = tokenizer(text, add_special_tokens=False).input_ids
    tokenizer(text, truncation=True, max_length=5, padding="max_length")
    encode = CorpusEncoder(tokenizer)
    assert encode([text, ""])[0].tolist() == expected
    assert encode([text, ""])[1].tolist() == []
    assert tokenizer("</s>", add_special_tokens=False).input_ids == [1]


def test_an_encoder_can_be_sent_to_another_process(tokenizer: Any) -> None:
    encode = CorpusEncoder(tokenizer)
    assert np.array_equal(pickle.loads(pickle.dumps(encode))([LITERALS])[0], encode([LITERALS])[0])


def test_t5s_own_tokenizer_which_takes_names_for_pieces(real_t5: Path) -> None:
    tokenizer: Any = load_tokenizer(real_t5)
    (ids,) = CorpusEncoder(tokenizer)([LITERALS])
    structural = {tokenizer.pad_token_id, tokenizer.eos_token_id, *sentinel_ids(tokenizer).tolist()}
    assert not structural.intersection(ids.tolist())
    plain = "a < b and some words, </t> too"
    assert CorpusEncoder(tokenizer)([plain])[0].tolist() == tokenizer(plain, add_special_tokens=False).input_ids
