"""Records of every shape that conversations come in, and of the shapes that they must not come in."""

import json
import logging

import pytest

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.conversations import open_conversations, transcript
from fivefold.errors import DataError


def _turns(*contents, system=None):
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def _write(path, records):
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(path)


def _read(tmp_path, *records, **settings):
    data = [_write(tmp_path / "data.jsonl", records)]
    return [record["messages"] for record in open_conversations(CorpusSettings(data=data, **settings))]


GOOD = {
    "response": ({"prompt": "q", "response": "a"}, _turns("q", "a")),
    "completion": ({"prompt": "q ", "completion": "\na"}, _turns("q", "a")),
    "question": ({"question": "q", "answer": "a"}, _turns("q", "a")),
    "output": ({"prompt": "q", "output": "a", "id": 3}, _turns("q", "a")),
    "prompt_messages": ({"prompt": _turns("q"), "completion": [_turns("q", "a")[1]]}, _turns("q", "a")),
    "alpaca": ({"instruction": "翻译", "input": "", "output": "a"}, _turns("翻译", "a")),
    "alpaca_input": ({"instruction": "i", "input": "x", "output": "a"}, _turns("i\nx", "a")),
    "alpaca_no_input": ({"instruction": "i", "input": None, "output": "a"}, _turns("i", "a")),
    "alpaca_history": (
        {"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]], "system": "s"},
        _turns("q1", "a1", "q2", "a2", system="s"),
    ),
    "alpaca_zh": (
        {"instruction": "i", "output": "o", "instruction_zh": "译", "input_zh": "x", "output_zh": "答"},
        _turns("译\nx", "答"),
    ),
    "belle_turns": (
        {"instruction": "Human:q1\nAssistant:a1\nline two\n Human:q2\nAssistant:", "input": "", "output": "a2"},
        _turns("q1", "a1\nline two", "q2", "a2"),
    ),
    "belle_single": ({"instruction": "Human: q \nAssistant:", "input": "", "output": "a"}, _turns("q", "a")),
    "talk_of_humans": ({"instruction": "What does Human: mean?", "output": "a"}, _turns("What does Human: mean?", "a")),
    "messages": ({"messages": _turns("q", "a", system="s")}, _turns("q", "a", system="s")),
    "blank_system": ({"messages": [{"role": "system", "content": " "}, *_turns("q", "a")]}, _turns("q", "a")),
    "parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, _turns("", "a")[1]]},
        _turns("q", "a"),
    ),
    "sharegpt": (
        {"id": "x", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        _turns("q", "a"),
    ),
    "sharegpt_system": (
        {"system": "s", "conversations": [{"from": "user", "value": "q"}, {"from": "assistant", "value": "a"}]},
        _turns("q", "a", system="s"),
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_shape_is_read(name, tmp_path):
    record, expected = GOOD[name]
    assert _read(tmp_path, record) == [expected]


BAD = {
    "no_answer": ({"instruction": "i", "input": "", "output": ""}, "turn 2, the assistant's, is empty"),
    "missing_answer": ({"instruction": "i", "input": "", "output": None}, "output is missing"),
    "number": ({"prompt": "q", "response": 3}, "the answer is a int, not text"),
    "no_turns": ({"messages": []}, "there are no turns"),
    "only_system": ({"messages": [{"role": "system", "content": "s"}]}, "there are no turns"),
    "assistant_first": ({"messages": _turns("q", "a")[::-1]}, "turn 1 is the assistant's where the user's"),
    "two_users": ({"messages": [*_turns("q"), *_turns("q", "a")]}, "turn 2 is the user's where the assistant's"),
    "unanswered": ({"messages": _turns("q", "a", "q")}, "the last turn is the user's where the assistant's"),
    "empty_turn": ({"messages": _turns("q", "a", " ", "a")}, "turn 3, the user's, is empty"),
    "unknown_role": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "a turn's role is 'tool', expected one of system",
    ),
    "late_system": ({"messages": [*_turns("q", "a"), {"role": "system", "content": "s"}]}, "turn 3 is the system's"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "a turn holds 'image', expected text only",
    ),
    "no_list": ({"messages": "q"}, "turns are a str, not a list of messages"),
    "history": ({"instruction": "i", "output": "o", "history": ["x"]}, "history is no list of pairs"),
    "preference": (
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        "'chosen', 'rejected' are no conversation; expected",
    ),
    "labelled": (
        {"prompt": "q", "completion": "a", "label": False},
        "'label' are no conversation; expected messages",
    ),
    "unknown": ({"body": "t"}, r"the columns 'body' are no conversation; expected messages \(messages: "),
    "empty": ({}, "the columns of an empty record are no conversation"),
    "surrogate": ({"prompt": "\ud83d", "response": "a"}, "the prompt holds half a character"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_with_file_and_line(name, tmp_path):
    record, message = BAD[name]
    data = tmp_path / "data.jsonl"
    data.write_text("\n" + json.dumps(record) + "\n")
    with pytest.raises(DataError, match=rf"data\.jsonl:2: .*{message}.*--max_bad_lines allows 0"):
        list(open_conversations(CorpusSettings(data=[str(data)])))


def test_bad_lines_are_skipped_as_far_as_allowed(tmp_path, caplog):
    alpaca, pair = {"instruction": "i", "output": "o"}, {"prompt": "q", "response": "a"}
    with caplog.at_level(logging.INFO, "fivefold"):
        read = _read(tmp_path, {"instruction": "i", "output": ""}, alpaca, pair, {"x": 1}, alpaca, max_bad_lines=3)
    assert read == [_turns("i", "o")] * 2
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("data ")] == [
        "data    data.jsonl: alpaca (instruction, output)"
    ]
    assert "are prompt and response, but the file began as alpaca; give each shape a file of its own" in caplog.text


def test_each_file_has_a_shape_of_its_own(tmp_path, caplog):
    first = _write(tmp_path / "a.jsonl", [{"instruction": "i", "output": "o"}])
    second = _write(tmp_path / "b.jsonl", [{"prompt": "q", "response": "a"}])
    third = _write(tmp_path / "c.jsonl", [{"instruction": "i", "output": "o"}])
    with caplog.at_level(logging.INFO, "fivefold"):
        records = list(open_conversations(CorpusSettings(data=[first, second, third])))
    assert [record["messages"] for record in records] == [_turns("i", "o"), _turns("q", "a"), _turns("i", "o")]
    assert [record.getMessage() for record in caplog.records] == [
        "data    a.jsonl: alpaca (instruction, output)",
        "data    b.jsonl: prompt and response (prompt, response)",
    ]


def test_a_transcript_is_told_from_talk_about_one():
    assert transcript("\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:") == _turns("q1", "a1", "q2")
    assert transcript("Human：q\nAssistant：a") == _turns("q", "a")
    assert transcript("Write: Human: x") is None
    assert transcript("Assistant: a\nHuman: q") is None


@pytest.mark.parametrize(
    ("record", "settings"), [({"text": " a "}, {}), ({"body": " a ", "id": 1}, {"text_field": "body"})]
)
def test_plain_text_stands_alone(record, settings, tmp_path):
    assert _read(tmp_path, record, **settings) == [[{"role": "text", "content": " a "}]]


def test_a_text_field_that_was_named_is_what_is_read(tmp_path):
    alpaca = {"instruction": "i", "output": "o", "text": "whole", "body": "b"}
    assert _read(tmp_path, alpaca) == [_turns("i", "o")]
    assert _read(tmp_path, alpaca, text_field="body") == [[{"role": "text", "content": "b"}]]
    with pytest.raises(DataError, match=r"the columns 'text' are no conversation; expected plain text \(body\)"):
        _read(tmp_path, {"text": "a"}, text_field="body")
    with pytest.raises(DataError, match="text is empty"):
        _read(tmp_path, {"text": " "})
