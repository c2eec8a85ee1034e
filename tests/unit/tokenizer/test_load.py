"""Opening tokenizers, and whether they fit a model or each other."""

from pathlib import Path
from typing import Any

import pytest

from fivefold.errors import DataError
from fivefold.tokenizer.load import check_fits, load_tokenizer, tokenizer_fingerprint
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer


def test_a_saved_tokenizer_opens_with_its_fingerprint(tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    opened = load_tokenizer(tmp_path)
    assert opened("今天 king").input_ids == tokenizer("今天 king").input_ids
    fingerprint = tokenizer_fingerprint(tokenizer)
    assert tokenizer_fingerprint(opened) == fingerprint
    opened("king " * 1000, truncation=True, max_length=5)
    assert tokenizer_fingerprint(opened) == fingerprint, "settings of a call are not part of it"


def test_fingerprints_tell_tokenizers_apart(small_texts: list[str], small_settings: dict[str, Any]) -> None:
    variants = [{}, {"num_sentinels": 21}, {"vocab_size": 581}, {"algorithm": "unigram"}, {"extra_special_tokens": []}]
    prints = [
        tokenizer_fingerprint(train_tokenizer(small_texts, TokenizerSettings(**small_settings | variant)).tokenizer)
        for variant in variants
    ]
    assert len(set(prints)) == len(prints)
    again = train_tokenizer(small_texts, TokenizerSettings(**small_settings)).tokenizer
    assert tokenizer_fingerprint(again) == prints[0]


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no tokenizer: expected tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"{", b'{"model": {}}', b"\xff\xfe"])
def test_a_broken_tokenizer(content: bytes, tokenizer: Any, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(DataError, match="cannot be opened"):
        load_tokenizer(tmp_path)


def test_a_name_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="'nobody/nothing' is no local folder, and as a Hub tokenizer it cannot be"):
        load_tokenizer("nobody/nothing")


def test_fitting_a_model(tokenizer: Any) -> None:
    check_fits(tokenizer, len(tokenizer))
    check_fits(tokenizer, len(tokenizer) + 28)
    with pytest.raises(DataError, match=rf"ids up to {len(tokenizer) - 1}.*vocab_size {len(tokenizer)} or more"):
        check_fits(tokenizer, len(tokenizer) - 1)
