"""Preferences to tokens: cut to their lengths, held out by their prompts, left out where nothing can be told apart."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.preference_data import build_preferences, encode_preferences, row_capacity
from fivefold.data.preferences import Preference
from fivefold.data.settings import DialogueSettings
from fivefold.errors import DataError
from fivefold.tokenizer.chat_format import ChatFormat
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

WORDS = ("where", "what", "is", "the", "old", "new", "city", "town", "yes", "no", "very")


@pytest.fixture
def tokenizer():
    settings = TokenizerSettings(output_dir="", vocab_size=460)
    return train_tokenizer(iter([" ".join(WORDS)] * 50), settings).tokenizer  # a chat format gives it a template


def sentence(generator: np.random.Generator, longest: int) -> str:
    return " ".join(generator.choice(WORDS, generator.integers(1, longest)))


def some_preferences(count: int = 40) -> list[Preference]:
    generator = np.random.default_rng(0)
    return [
        Preference(
            [{"role": "user", "content": f"{number} {sentence(generator, 80)}"}],
            f"yes {sentence(generator, 40)}",
            f"no {sentence(generator, 40)}",
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_every_pair_fits_its_row(tokenizer, family):
    data = DialogueSettings(input_length=56, target_length=30)
    chat = ChatFormat(tokenizer, family)
    pairs = encode_preferences(some_preferences(), data, chat)
    assert len(pairs) == 40
    assert (pairs.row_lengths(family) <= row_capacity(data, family)).all()
    assert pairs.num_tokens.max() == 30 if family == "t5" else pairs.num_tokens.max() <= 30
    assert chat.cuts.prompts
    assert chat.cuts.answers
    if family == "llama":
        for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True):
            assert len(prompt) + max(len(chosen), len(rejected)) <= 56


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_what_is_not_cut_is_what_the_format_writes(tokenizer, family):
    chat, preferences = ChatFormat(tokenizer, family), some_preferences(5)
    pairs = encode_preferences(preferences, DialogueSettings(input_length=512), chat)
    for number, preference in enumerate(preferences):
        assert pairs.prompts[number].tolist() == chat.prompt_ids(preference.prompt).tolist()
        assert pairs.chosen[number].tolist() == chat.answer_ids(preference.chosen).tolist()
        assert pairs.rejected[number].tolist() == chat.answer_ids(str(preference.rejected)).tolist()
        assert pairs.chosen[number][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_what_cannot_be_used_is_counted_and_named(tokenizer, family, caplog):
    same = Preference([{"role": "user", "content": "which city"}], f"yes {'old ' * 40}", f"yes {'old ' * 40} town")
    wordy = [{"role": "system", "content": "very " * 60}, {"role": "user", "content": "why is it"}]
    no_room = Preference(wordy, "yes", "no")
    with caplog.at_level(logging.WARNING):
        preferences = [same, *some_preferences(3), no_room]
        pairs = encode_preferences(preferences, DialogueSettings(input_length=32), ChatFormat(tokenizer, family))
    assert len(pairs) == 3
    left_out = [record.message for record in caplog.records]
    assert any(
        "1 pairs are left out (to 'which city'); their answers are the same once cut" in line for line in left_out
    )
    assert any("1 pairs are left out (to 'why is it')" in line and "no room" in line for line in left_out)


def corpus_of(file: Path, preferences: list[Preference]) -> CorpusSettings:
    records = [
        {"prompt": preference.prompt, "chosen": preference.chosen, "rejected": preference.rejected}
        for preference in preferences
    ]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return CorpusSettings([str(file)])


def test_answers_to_a_prompt_share_its_fate(tokenizer, tmp_path):
    twice = [each for preference in some_preferences() for each in (preference, preference)]
    corpus, chat = corpus_of(tmp_path / "pairs.jsonl", twice), ChatFormat(tokenizer, "t5")
    data = build_preferences(corpus, DialogueSettings(validation_frac=0.3), chat)
    assert data.validation is not None
    assert len(data.training) + len(data.validation) == 80
    trained, held = ({tuple(ids) for ids in side.prompts} for side in (data.training, data.validation))
    assert trained
    assert held
    assert not trained & held
    apart = corpus_of(tmp_path / "apart.jsonl", some_preferences(7)).data
    data = build_preferences(corpus, DialogueSettings(validation_data=apart), chat)
    assert data.validation is not None
    assert (len(data.training), len(data.validation)) == (66, 7)  # what is measured on is not trained on
    data = build_preferences(corpus, DialogueSettings(validation_frac=0), chat)
    assert (len(data.training), data.validation) == (80, None)


def test_nothing_left_is_an_error(tokenizer, tmp_path):
    corpus, chat = corpus_of(tmp_path / "pairs.jsonl", some_preferences(3)), ChatFormat(tokenizer, "t5")
    with pytest.raises(DataError, match="No pair was held out by validation_frac 1e-06"):
        build_preferences(corpus, DialogueSettings(validation_frac=1e-6), chat)
    with pytest.raises(DataError, match="There are no pairs to train on"):
        build_preferences(corpus, DialogueSettings(validation_frac=0.999999), chat)
