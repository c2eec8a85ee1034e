"""A trained tokenizer: its layout, its files, and that it comes out the same each time."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, T5Config

from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.load import tokenizer_fingerprint
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.special_tokens import sentinel_ids
from fivefold.tokenizer.train import count_learned_pieces, train_tokenizer


def test_layout_of_the_vocabulary(tokenizer: Any, small_settings: dict[str, Any]) -> None:
    size = small_settings["vocab_size"]
    tokens = tokenizer.convert_ids_to_tokens(range(size))
    assert len(tokenizer) == size == len(set(tokens))
    assert tokens[:3] == ["<pad>", "</s>", "<unk>"]
    assert tokens[3:259] == [f"<0x{byte:02X}>" for byte in range(256)]
    assert tokens[-23:-20] == ["[NLU]", "[NLG]", "[S2S]"]
    assert tokens[-20:] == [f"<extra_id_{number}>" for number in reversed(range(20))]
    assert np.array_equal(sentinel_ids(tokenizer), size - 1 - np.arange(20))
    learned = "".join(tokens[259:-23])
    assert set("今天king,.") <= set(learned)
    assert not any(character.isdigit() for token in tokens[259:-23] if len(token) > 1 for character in token)


def test_pieces_end_at_punctuation_digits_and_line_breaks(tokenizer: Any) -> None:
    tokens = tokenizer.tokenize("king, 12\n\n queen.好，天气")
    for separate in ",", "1", "2", ".":
        assert separate in tokens
    assert not any("\n" in token and token.strip("\n") for token in tokens)
    assert "\u2581queen" in "".join(tokens)


def test_t5_conventions(tokenizer: Any) -> None:
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer("天气").input_ids[-1] == 1
    pair = tokenizer("天气", "king").input_ids
    assert [id_ for id_ in pair if id_ == 1] == [1, 1]
    assert tokenizer("a <extra_id_0> b", add_special_tokens=False).input_ids.count(len(tokenizer) - 1) == 1
    padded = tokenizer(["king", "天气很好"], padding=True)
    assert {len(ids) for ids in padded.input_ids} == {max(sum(mask) for mask in padded.attention_mask)}
    assert tokenizer.decode(tokenizer("a<extra_id_0>b").input_ids, skip_special_tokens=True) == "ab"


def test_transformers_opens_the_folder(tokenizer: Any, small_texts: list[str], tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    opened = AutoTokenizer.from_pretrained(tmp_path)
    # As in a checkpoint, where the model's config.json would lead transformers to its own T5 tokenizer.
    T5Config(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    beside_model = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{small_texts[0]} <extra_id_3> {small_texts[1]}"
    for other in (opened, beside_model):
        assert other(text).input_ids == tokenizer(text).input_ids
        assert other.decode(other(text).input_ids) == tokenizer.decode(tokenizer(text).input_ids)
        assert (other.pad_token_id, other.eos_token_id, other.unk_token_id) == (0, 1, 2)
        assert other.model_max_length == 512
        assert tokenizer_fingerprint(other) == tokenizer_fingerprint(tokenizer)


def test_saving_again_leaves_other_files_alone(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "tokenizer.json").write_text("half a tok")
    save_tokenizer(tokenizer, tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    json.loads((tmp_path / "tokenizer.json").read_text())


def test_a_folder_that_cannot_be_written(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        save_tokenizer(tokenizer, tmp_path / "file")


TRAIN_AND_HASH = """
import hashlib, sys
from pathlib import Path
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer
texts = Path(sys.argv[1]).read_text().split("\\x00")
settings = TokenizerSettings(output_dir=sys.argv[2], vocab_size=900, algorithm=sys.argv[3], sample_characters=20_000)
save_tokenizer(train_tokenizer(texts, settings).tokenizer, settings.output_dir)
"""


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_the_same_text_gives_the_same_bytes_in_every_process(
    algorithm: str, corpus_cache: Path, tmp_path: Path
) -> None:
    from fivefold.corpus.read import open_corpus, texts
    from fivefold.corpus.settings import CorpusSettings

    documents = list(texts(open_corpus(CorpusSettings(data=["zh_sanguo"]))))[:10]
    (tmp_path / "texts").write_text("\x00".join(documents))
    digests = set()
    for seed in ("1", "2"):
        arguments = [str(tmp_path / "texts"), str(tmp_path / seed), algorithm]
        environment = os.environ | {
            "PYTHONHASHSEED": seed,
            "TOKENIZERS_PARALLELISM": "false" if seed == "1" else "true",
        }
        subprocess.run([sys.executable, "-c", TRAIN_AND_HASH, *arguments], env=environment, check=True)
        digests.add(hashlib.sha256((tmp_path / seed / "tokenizer.json").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_rare_characters_are_spelled_in_bytes(small_texts: list[str], small_settings: dict[str, Any]) -> None:
    # About 150 kinds of characters, of which a budget of 100 pieces admits two thirds.
    rare = [chr(0x3400 + number) for number in range(60)]
    settings = TokenizerSettings(**small_settings | {"vocab_size": 262 + 20 + 100, "character_coverage": 1.0})
    for algorithm in ("bpe", "unigram"):
        settings.algorithm = algorithm
        tokenizer = train_tokenizer([*small_texts, "".join(rare)], settings).tokenizer
        assert len(tokenizer) == settings.vocab_size
        singles = [
            token for token in tokenizer.convert_ids_to_tokens(range(259, len(tokenizer) - 23)) if len(token) == 1
        ]
        assert len(singles) <= 66
        assert tokenizer.tokenize(rare[0]) == [f"<0x{byte:02X}>" for byte in rare[0].encode()]


def test_text_with_few_pieces_gives_a_smaller_vocabulary() -> None:
    tokenizer = train_tokenizer(["ab ab", "ab"], TokenizerSettings(output_dir="", vocab_size=1000)).tokenizer
    assert 259 + 3 + 128 + 2 <= len(tokenizer) < 400
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    assert sentinel_ids(tokenizer)[0] == len(tokenizer) - 1


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text(texts: list[str]) -> None:
    with pytest.raises(DataError, match="is empty"):
        train_tokenizer(texts, TokenizerSettings(output_dir=""))


def test_too_small_a_vocabulary_names_the_smallest(small_texts: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"expected at least (\d+)") as caught:
        train_tokenizer([], TokenizerSettings(output_dir="", vocab_size=100))
    smallest = int(str(caught.value).rstrip(".").rsplit(" ", 1)[-1])
    for algorithm in ("bpe", "unigram"):
        settings = TokenizerSettings(output_dir="", vocab_size=smallest, algorithm=algorithm)
        assert len(train_tokenizer(small_texts, settings).tokenizer) == smallest
    with pytest.raises(ConfigError):
        count_learned_pieces(TokenizerSettings(output_dir="", vocab_size=smallest - 1))


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 0},
        {"num_sentinels": -1},
        {"sample_characters": 0},
        {"read_characters": 0},
        {"character_coverage": 0.0},
        {"character_coverage": 1.1},
        {"extra_special_tokens": ["[A]", "[A]"]},
        {"extra_special_tokens": [" "]},
        {"extra_special_tokens": ["<extra_id_5>"]},
        {"extra_special_tokens": ["</s>"]},
    ],
    ids=str,
)
def test_settings_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(change))}"):
        count_learned_pieces(TokenizerSettings(output_dir="", **change))


def test_sentinels_follow_the_longest_input() -> None:
    for max_length, expected in ((1, 100), (512, 128), (2048, 512)):
        settings = TokenizerSettings(output_dir="", max_length=max_length)
        assert count_learned_pieces(settings) == 32_000 - 259 - 3 - expected
