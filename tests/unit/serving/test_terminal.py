"""A chat by lines: history, commands, what goes where."""

import io

import pytest
from chat_models import small_tokenizer, write_model

from fivefold.errors import ConfigError
from fivefold.models.answers import Answerer
from fivefold.models.decoding import ChatDecoding
from fivefold.serving.open_model import open_model
from fivefold.serving.terminal import Chat, _shown, run_chat


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    return Answerer(*open_model(str(write_model("t5", tmp_path_factory.mktemp("model"), small_tokenizer()))))


@pytest.fixture
def chat(answerer):
    return Chat(answerer, ChatDecoding(max_new_tokens=8))


def talk(chat, *lines):
    run_chat(chat, io.StringIO("".join(f"{line}\n" for line in lines)), is_terminal=False)


def test_answers_follow_from_all_that_was_said(chat, answerer, capsys):
    talk(chat, "abc", "", "  de fgh ")
    assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 2
    assert [message["content"] for message in chat.messages[::2]] == ["abc", "de fgh"]
    first, second = (message["content"] for message in chat.messages[1::2])
    assert capsys.readouterr().out == f"{first}\n{second}\n"
    assert first == answerer.write([chat.messages[:1]], chat.decoding, [0])[0]
    assert second == answerer.write([chat.messages[:3]], chat.decoding, [1])[0]


def test_reset_forgets_all_but_the_system_message(answerer, capsys):
    chat = Chat(answerer, ChatDecoding(max_new_tokens=8), system="de")
    talk(chat, "abc", "/reset", "abc")
    answers = capsys.readouterr().out.splitlines()
    assert answers[0] == answers[1]
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]


def test_parameters_are_shown_and_set_all_or_nothing(chat, capsys):
    talk(chat, "/params temperature=0.5 max_new_tokens=3", "/params top_k=x", "/params seed=7 nonsense=1", "/params")
    said = capsys.readouterr().err.splitlines()
    assert "max_new_tokens=3" in said[0]
    assert "temperature=0.5" in said[0]
    assert said[1] == "top_k got 'x'; it takes a whole number."
    assert said[2].startswith("There is no 'nonsense' to set; there are max_new_tokens, num_beams")
    assert said[3] == said[0]
    assert chat.decoding == ChatDecoding(max_new_tokens=3, temperature=0.5)
    with pytest.raises(ConfigError, match="nothing could be shown before"):
        chat.set_params(["num_beams=2"])
    chat.set_params(["temperature=0.7", "do_sample=false"])
    assert not chat.decoding.do_sample


def test_commands_that_there_are_and_others(chat, monkeypatch, capsys):
    monkeypatch.setattr(chat.answerer, "stream", lambda *_: iter(["ok"]))
    talk(chat, "/help", "/etc/passwd is what?", " /etc", "/exit", "never read")
    captured = capsys.readouterr()
    assert "/params NAME=VALUE" in captured.err
    assert "There is no command '/etc/passwd is what?'" in captured.err
    assert [message["content"] for message in chat.messages[::2]] == ["/etc"]


def test_what_no_longer_fits_is_said(answerer, capsys):
    short = Answerer(answerer.model, answerer.tokenizer, input_length=30)
    talk(Chat(short, ChatDecoding(max_new_tokens=8)), "abc " * 6, "de " * 6)
    assert "oldest turns no longer fit" in capsys.readouterr().err
    talk(Chat(short, ChatDecoding(max_new_tokens=8)), "abc " * 60)
    assert "too long; its end was not read" in capsys.readouterr().err


def test_an_answer_that_was_interrupted_stays_as_far_as_it_came(chat):
    pieces = chat.ask("abc")
    written = next(pieces)
    pieces.close()
    assert chat.messages[1:] == [{"role": "assistant", "content": written}]


def test_a_model_that_says_nothing_is_said_to(chat, monkeypatch, capsys):
    monkeypatch.setattr(chat.answerer, "stream", lambda *_: iter([]))
    talk(chat, "abc")
    assert chat.messages == []  # so that roles go on to alternate
    captured = capsys.readouterr()
    assert captured.out == "\n"
    assert "said nothing" in captured.err


def test_half_characters_are_not_sent(chat, capsys):
    talk(chat, "a\ud800b")
    assert chat.messages == []
    assert "half a character" in capsys.readouterr().err


def test_no_answer_commands_the_terminal():
    assert _shown("a\x1b[2J\tb\n\x07\x9b\u4f60\U0001f642") == "a[2J\tb\n\u4f60\U0001f642"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_beams": 2}, "--num_beams must be 1"),
        ({"do_sample": False, "temperature": 0.5}, "add --do_sample"),
        ({"top_p": 0}, "--top_p in"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        ChatDecoding(**changes)
    assert ChatDecoding(do_sample=False).arguments().keys() >= {"do_sample"}  # unchanged defaults are no contradiction
