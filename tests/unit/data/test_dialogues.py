"""Conversations to examples: what is read, what is learned, what is cut, what is held out."""

import json

import numpy as np
import pytest

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.dialogues import build_dialogues, encode_dialogues
from fivefold.data.settings import DialogueSettings
from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.chat_format import ChatFormat
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

WORDS = "one two three four five six seven eight nine ten"


def _talk(*contents, system=None):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


LONG = _talk("one two", "three", "four five", "six seven", "eight", "nine ten", system="kind")


@pytest.fixture(params=["t5", "llama"])
def chat(request):
    return _chat(request.param)


def _chat(family):
    settings = TokenizerSettings("", vocab_size=420, num_sentinels=20)
    return ChatFormat(train_tokenizer([WORDS] * 5, settings).tokenizer, family)


def _read(chat, ids):
    return chat.tokenizer.decode([token for token in ids if token >= 0])


def test_a_t5_has_an_example_for_every_answer():
    chat = _chat("t5")
    examples = encode_dialogues([_talk("one", "two"), LONG], DialogueSettings(input_length=200), chat)
    assert [(_read(chat, prompt), _read(chat, answer)) for prompt, answer in examples] == [
        ("one</s>", "two</s>"),
        ("System: kind\nUser: one two</s>", "three</s>"),
        ("System: kind\nUser: one two\nAssistant: three\nUser: four five</s>", "six seven</s>"),
        (
            "System: kind\nUser: one two\nAssistant: three\nUser: four five\nAssistant: six seven\nUser: eight</s>",
            "nine ten</s>",
        ),
    ]


def test_a_decoder_reads_a_conversation_once_and_learns_its_answers():
    chat = _chat("llama")
    ((ids, labels),) = encode_dialogues([LONG], DialogueSettings(input_length=200), chat)
    whole = chat.tokenizer.apply_chat_template(LONG, tokenize=False)
    assert _read(chat, ids) == whole.removesuffix("\n")
    learned = labels != -100
    assert _read(chat, labels) == "three</s>six seven</s>nine ten</s>"
    np.testing.assert_array_equal(ids[learned], labels[learned])


def test_what_does_not_fit_into_a_decoders_row_goes_into_another():
    chat = _chat("llama")
    ((whole, _),) = encode_dialogues([LONG], DialogueSettings(input_length=400), chat)
    rows = encode_dialogues([LONG], DialogueSettings(input_length=len(whole) - 1), chat)
    assert [_read(chat, labels) for _, labels in rows] == ["three</s>six seven</s>", "nine ten</s>"]
    assert _read(chat, rows[1][0]) == "System: kind\nUser: eight\nAssistant:nine ten</s>"
    assert all(len(ids) <= len(whole) - 1 for ids, _ in rows)


def test_if_question_and_answer_are_too_long_each_gets_half():
    chat = _chat("llama")
    talk = _talk(" ".join([WORDS] * 4), " ".join([WORDS] * 4), "one", "two")
    first, second = encode_dialogues([talk], DialogueSettings(input_length=40), chat)
    assert len(first[0]) <= 40
    assert 15 <= (first[1] != -100).sum() <= 20
    assert not _read(chat, first[1]).endswith("</s>")  # it is not taught to end where it was cut
    assert _read(chat, second[1]) == "two</s>"
    assert (chat.cuts.prompts, chat.cuts.answers) == (1, 1)
    short_question = _talk("one", " ".join([WORDS] * 4))
    ((ids, labels),) = encode_dialogues([short_question], DialogueSettings(input_length=40), chat)
    assert (len(ids), _read(chat, ids[labels == -100])) == (40, "User: one\nAssistant:")
    ((_, labels),) = encode_dialogues([short_question], DialogueSettings(input_length=40, target_length=7), chat)
    assert (labels != -100).sum() == 7


def test_a_template_that_rewrites_its_history_gives_every_answer_a_row():
    tokenizer = _chat("llama").tokenizer
    # Only the last two messages are written as they are; of those before, a mark stays.
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] if messages | length - loop.index < 2 else '~' }}|{% endfor %}"
    )
    chat = ChatFormat(tokenizer, "llama")
    rows = encode_dialogues([_talk("one", "two", "three", "four")], DialogueSettings(input_length=99), chat)
    assert [_read(chat, ids) for ids, _ in rows] == ["one|two</s>", "~|two|three|four</s>"]
    assert [_read(chat, labels) for _, labels in rows] == ["two</s>", "four</s>"]


def _file(tmp_path, conversations, name="data.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)


def _prompts(chat, source):
    batch = source.batch(np.arange(source.samples_per_epoch))
    return [_read(chat, row) for row in batch["input_ids"]]


def test_equal_first_messages_share_one_fate(chat, tmp_path):
    numbers = [f"{WORDS} {number:02}" for number in range(60)]
    talks = [_talk(number, answer) for answer in ("a", "b") for number in numbers]
    data = DialogueSettings(input_length=100, validation_frac=0.2)
    dialogues = build_dialogues(CorpusSettings(data=[_file(tmp_path, talks)]), data, chat, seed=0)
    held_out = {messages[0]["content"] for messages in dialogues.held_out}
    assert 3 < len(held_out) < 25
    assert len(dialogues.held_out) == 2 * len(held_out)
    trained = _prompts(chat, dialogues.training)
    assert len(trained) == len(talks) - len(dialogues.held_out)
    assert not any(text in prompt for text in held_out for prompt in trained)
    assert dialogues.validation is not None
    assert " conversations, " in dialogues.training.describe()


def test_validation_data_are_not_trained_on(chat, tmp_path):
    training = CorpusSettings(data=[_file(tmp_path, [_talk("one", "a"), _talk("two", "b"), _talk("one", "c")])])
    apart = _file(tmp_path, [_talk("one", "x")], "apart.jsonl")
    dialogues = build_dialogues(training, DialogueSettings(validation_data=[apart]), chat, seed=0)
    assert dialogues.held_out == [_talk("one", "x")]
    (prompt,) = _prompts(chat, dialogues.training)
    assert "two" in prompt


def test_packing_loses_nothing(chat, tmp_path):
    talks = [_talk(*(WORDS.split()[: 2 + 2 * (number % 4)])) for number in range(40)]
    corpus = CorpusSettings(data=[_file(tmp_path, talks)])
    plain, packed = (
        build_dialogues(corpus, DialogueSettings(input_length=64, validation_frac=0, packing=packing), chat, seed=0)
        for packing in (False, True)
    )
    assert plain.validation is None
    assert packed.training.samples_per_epoch < 0.8 * plain.training.samples_per_epoch

    def learned(source):
        batch = source.batch(np.arange(source.samples_per_epoch))
        return np.sort(batch["labels"][batch["labels"] != -100])

    np.testing.assert_array_equal(learned(plain.training), learned(packed.training))


def test_bad_data_are_refused(chat, tmp_path):
    corpus = CorpusSettings(data=[_file(tmp_path, [_talk("one", "two")])])
    with pytest.raises(DataError, match=r"No conversation was held out by validation_frac 0\.01; give a larger share"):
        build_dialogues(corpus, DialogueSettings(), chat, seed=0)
    with pytest.raises(DataError, match="There are no conversations to train on"):
        build_dialogues(corpus, DialogueSettings(validation_data=corpus.data), chat, seed=0)
    with pytest.raises(ConfigError, match="input_length is 1; give a number of tokens from 2"):
        DialogueSettings(input_length=1)
    if chat.family == "t5":
        chat.tokenizer.pad_token = None
        with pytest.raises(ConfigError, match="no padding token"):
            build_dialogues(corpus, DialogueSettings(validation_frac=0), chat, seed=0)


@pytest.mark.parametrize("length", [2, 5, 7, 200])
def test_plain_text_is_learned_whole(length):
    chat = _chat("llama")
    texts = [WORDS, "one", "two three</s>"]
    data = DialogueSettings(input_length=length)
    pairs = [
        pair
        for ids, labels in encode_dialogues([[{"role": "text", "content": text}] for text in texts], data, chat)
        for pair in zip(ids[:-1].tolist(), labels[1:].tolist(), strict=True)
    ]
    # As transformers writes them, an end mark behind each: every token but the first is predicted, once.
    whole = [chat.tokenizer(text.removesuffix("</s>"), add_special_tokens=False).input_ids for text in texts]
    end = chat.tokenizer.eos_token_id
    assert pairs == [pair for ids in whole for pair in zip(ids, [*ids[1:], end], strict=True)]


def test_plain_text_beside_conversations(tmp_path):
    chat = _chat("llama")
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"{WORDS} {n}"}) + "\n" for n in range(40)))
    corpus = CorpusSettings(data=[_file(tmp_path, [_talk("one", "two")]), str(tmp_path / "text.jsonl")])
    data = DialogueSettings(input_length=64, validation_frac=0.2, packing=True)
    dialogues = build_dialogues(corpus, data, chat, seed=0)
    assert 0 < len(dialogues.held_out) < 20
    assert " of them learned; " in dialogues.training.describe()
    with pytest.raises(DataError, match="holds plain text, in which a T5 finds no answer to write"):
        build_dialogues(corpus, data, _chat("t5"), seed=0)


def test_rows_without_anything_to_learn_are_refused(tmp_path):
    chat = _chat("llama")
    chat.encode_answers = lambda texts, most=None: [np.zeros(0, np.int32) for _ in texts]
    chat.answer_ids = lambda text, most=None: np.ones(1, np.int32)
    corpus = CorpusSettings(data=[_file(tmp_path, [_talk("one", "two")])])
    with pytest.raises(DataError, match="No row has a token to learn"):
        build_dialogues(corpus, DialogueSettings(validation_frac=0), chat, seed=0)
