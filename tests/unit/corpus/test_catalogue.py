"""The catalogue: its table, and what its parsers make of the files in the packages."""

import json

from fivefold.corpus.catalogue import (
    ENTRIES,
    format_catalogue,
    parse_instructions,
    parse_plays,
    parse_preferences,
    parse_reviews,
    parse_sanguo,
)


def test_reviews_are_distinct_and_unambiguous() -> None:
    members = {
        "p/pos.txt": "好\n 好 \n很好\n都有\n\n".encode(),
        "p/neg.txt": "坏\n坏\n都有\n".encode(),
    }
    records = list(parse_reviews(members))
    assert sorted((record["text"], record["label"]) for record in records) == [
        ("坏", "negative"),
        ("好", "positive"),
        ("很好", "positive"),
    ]
    assert list(parse_reviews(dict(reversed(members.items())))) == records


def test_chapters_keep_their_paragraphs() -> None:
    chapters = ["第一回 题目\n\n  \n\t甲www.site.com ，乙。\n\n\t丙。\n", "第二回 题目\n\n\t丁。"]
    assert list(parse_sanguo({"docs.json": json.dumps(chapters).encode()})) == [
        {"text": "甲，乙。\n丙。", "title": "第一回 题目"},
        {"text": "丁。", "title": "第二回 题目"},
    ]


def test_plays_are_cut_at_their_scenes() -> None:
    speech = "A speech that acts its part in a scene.   \n\n" * 8
    play = f"PLAY\n\n{speech}ACT I.\n\nScene I. A street.\n\n{speech}\nSCENE 2\n\n  Act with speed, said he.\n{speech}"
    records = list(parse_plays({"t/some_play_gut.txt": play.encode(), "t/poem_gut.txt": b"Let the bird\n"}))
    clean = ("A speech that acts its part in a scene.\n\n" * 8).strip()
    assert records == [
        {"text": f"PLAY\n\n{clean}", "title": "some play"},
        {"text": f"ACT I.\n\nScene I. A street.\n\n{clean}", "title": "some play"},
        {"text": f"SCENE 2\n\n  Act with speed, said he.\n{clean}", "title": "some play"},
    ]


def test_instructions_take_their_input_along() -> None:
    rows = [
        {"instruction": "Add. ", "input": "1 and 2", "output": "3 "},
        {"instruction": "Say hello.", "input": "", "output": "Hello."},
        {"instruction": "Say hello.", "input": " ", "output": "Hi."},
    ]
    assert list(parse_instructions({"demo.json": json.dumps(rows).encode()})) == [
        {"prompt": "Add.\n1 and 2", "response": "3"},
        {"prompt": "Say hello.", "response": "Hello."},
    ]


def test_the_table_shows_every_entry() -> None:
    header, *lines = format_catalogue().splitlines()
    assert header.split() == ["name", "language", "kind", "size", "licence", "source"]
    for entry, line in zip(ENTRIES, lines, strict=True):
        for value in (entry.name, entry.language, entry.size, entry.licence, entry.source):
            assert value in line


def test_preferences_come_once_a_prompt() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": " q "}]
    rows = [
        {"conversations": turns, "chosen": {"from": "gpt", "value": "a\n"}, "rejected": {"from": "gpt", "value": "b"}},
        {"conversations": turns, "chosen": {"from": "gpt", "value": "c"}, "rejected": {"from": "gpt", "value": "d"}},
    ]
    prompt = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    assert list(parse_preferences({"demo.json": json.dumps(rows).encode()})) == [
        {"prompt": prompt, "chosen": "a", "rejected": "b"}
    ]
