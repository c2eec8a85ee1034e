"""Preferences of every shape, and those that say nothing."""

import json
import logging

import pytest

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.preferences import Preference, read_preferences
from fivefold.errors import DataError


def _user(content):
    return {"role": "user", "content": content}


def _assistant(content):
    return {"role": "assistant", "content": content}


def _read(tmp_path, *records, needs_rejected=True, **settings):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return list(read_preferences(CorpusSettings(data=[str(path)], **settings), needs_rejected=needs_rejected))


Q = [_user("q")]
LONG = [_user("q1"), _assistant("a1"), _user("q2")]
HH = "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:"
GOOD = {
    "standard": ({"prompt": "q", "chosen": "good ", "rejected": "bad"}, Q),
    "reject": ({"prompt": "q", "chosen": "good", "reject": "bad"}, Q),
    "transcript": ({"prompt": HH, "chosen": "good", "rejected": "bad"}, LONG),
    "explicit": ({"prompt": LONG, "chosen": [_assistant("good")], "rejected": [_assistant("bad")]}, LONG),
    "explicit_whole": ({"prompt": Q, "chosen": [*Q, _assistant("good")], "rejected": [*Q, _assistant("bad")]}, Q),
    "implicit": ({"chosen": [*LONG, _assistant("good")], "rejected": [*LONG, _assistant("bad")]}, LONG),
    "implicit_texts": (
        {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        Q,
    ),
    "prompt_and_texts": (
        {
            "prompt": "Human: q\nAssistant:",
            "chosen": "Human: q\nAssistant: good",
            "rejected": "Human: q\nAssistant: bad",
        },
        Q,
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        [{"role": "system", "content": "s"}, *Q],
    ),
    "messages": ({"messages": Q, "chosen": _assistant("good"), "rejected": _assistant("bad")}, Q),
    "alpaca": ({"instruction": "q", "input": "x", "chosen": "good", "rejected": "bad"}, [_user("q\nx")]),
}


@pytest.mark.parametrize("name", GOOD)
def test_every_shape_is_read(name, tmp_path):
    record, prompt = GOOD[name]
    assert _read(tmp_path, record) == [Preference(prompt, "good", "bad")]


BAD = {
    "same": ({"prompt": "q", "chosen": "a", "rejected": " a"}, "the chosen and the rejected answer are the same"),
    "no_rejected": ({"prompt": "q", "chosen": "a"}, "there is no rejected answer; `fivefold rejected` writes them"),
    "null": ({"prompt": "q", "chosen": "a", "rejected": None}, "there is no rejected answer"),
    "empty": ({"prompt": "q", "chosen": "a", "rejected": ""}, "the rejected answer is empty"),
    "empty_chosen": ({"prompt": "q", "chosen": "", "rejected": "b"}, "the chosen answer is empty"),
    "no_prompt": ({"prompt": "", "chosen": "a", "rejected": "b"}, "turn 1, the user's, is empty"),
    "texts_only": ({"chosen": "a", "rejected": "b"}, "there is no prompt, and the chosen and rejected texts"),
    "unlike": (
        {"chosen": [_user("q"), _assistant("a")], "rejected": [_user("p"), _assistant("b")]},
        "differ in more than the last answer",
    ),
    "other_prompt": (
        {"prompt": Q, "chosen": [_user("p"), _assistant("a")], "rejected": [*Q, _assistant("b")]},
        "the chosen answer is a dialogue that does not begin with the prompt",
    ),
    "wrong_role": (
        {"messages": Q, "chosen": _user("a"), "rejected": _assistant("b")},
        "the chosen answer is the user's",
    ),
    "answered": (
        {"messages": [*Q, _assistant("a")], "chosen": "x", "rejected": "y"},
        "the last turn is the assistant's",
    ),
    "number": ({"prompt": "q", "chosen": 1, "rejected": 2}, "the chosen answer is a int, not text"),
    "conversation": ({"instruction": "i", "output": "o"}, "'instruction', 'output' are no preference; expected"),
    "label": ({"prompt": "q", "completion": "a", "label": "good"}, "label: true or false"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_named_with_file_and_line(name, tmp_path):
    record, message = BAD[name]
    with pytest.raises(DataError, match=rf"data\.jsonl:1: .*{message}"):
        _read(tmp_path, record)


def test_good_and_bad_answers_to_one_prompt_are_paired(tmp_path, caplog):
    labelled = [("q", "g1", True), ("p", "b1", False), ("q", "b2", False), ("q", "b3", False), ("p", "b1", True)]
    labelled += [("q", "g4", True), ("r", "g", True)]
    records = [{"prompt": prompt, "completion": answer, "label": label} for prompt, answer, label in labelled]
    with caplog.at_level(logging.INFO, "fivefold"):
        assert _read(tmp_path, *records) == [Preference(Q, "g1", "b2"), Preference(Q, "g4", "b3")]
    assert "3 of 7 labelled answers have no partner" in caplog.text
    in_messages = [
        {"messages": [*LONG, _assistant(answer)], "label": label} for answer, label in (("bad", False), ("good", True))
    ]
    assert _read(tmp_path, *in_messages) == [Preference(LONG, "good", "bad")]


def test_labels_without_a_pair_are_refused(tmp_path):
    with pytest.raises(DataError, match="Of 1 labelled answers no good and bad one are to the same prompt"):
        _read(tmp_path, {"prompt": "q", "completion": "a", "label": True})


def test_answers_may_be_missing_where_they_are_to_be_written(tmp_path):
    records = [{"prompt": "q", "chosen": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}]
    assert _read(tmp_path, *records, needs_rejected=False) == [Preference(Q, "a", None), Preference(Q, "a", "b")]
    (from_alpaca,) = _read(tmp_path, {"instruction": "q", "output": "a"}, needs_rejected=False)
    assert from_alpaca == Preference(Q, "a", None)
