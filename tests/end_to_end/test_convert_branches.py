"""Conversations to main texts with branches, worked out by hand; and `parallel` reads what is written."""

import json
from collections import Counter
from pathlib import Path

import pytest
from chat_models import small_tokenizer, write_model

from fivefold.cli import main
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.branch_records import BRANCHED, open_branches


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _converted(records, *words):
    Path("data.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert main(["convert-branches", "--data", "data.jsonl", "--output_file", "out.jsonl", *words]) == 0
    return [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]


def _alpaca(*pairs):
    return [{"instruction": asked, "output": said} for asked, said in pairs]


def test_several_answers_to_one_prompt(capsys):
    records = _alpaca(("one?", "a"), ("two?", "b"), ("one?", "c"), ("one?", "a"), ("three?", "d"))
    rows = _converted(records, "--prompt_format", "<user>{prompt}<bot>")
    assert rows == [{"main": "<user>one?<bot>", "branches": ["a", "c"]}]
    assert capsys.readouterr().out == (
        "wrote 1 rows with 2 branches; 2 main texts with fewer than 2 branches left out\n"
    )


@pytest.mark.parametrize("answers", ["it", ["it", "that"], {"text": ["it"], "answer_start": [0]}, [{"text": "it"}]])
def test_questions_on_one_passage(answers):
    records = [{"context": "P.", "question": f"q{n}?", "answers": answers} for n in (1, 2)]
    (row,) = _converted(records, "--by", "questions")
    before = "Question: q1?\nAnswer:"
    assert row["main"] == "P.\n"
    assert row["branches"][0] == {"text": f"{before} it", "answer_offset": len(before)}
    assert len(row["branches"]) == 2


def test_real_questions(corpus_cache, capsys):
    assert main(["convert-branches", "--data", "en_questions", "--by", "questions", "--output_file", "out.jsonl"]) == 0
    asked = [
        json.loads(line) for line in (corpus_cache / "en_questions.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [json.loads(line) for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert f"wrote {len(rows):,} rows" in capsys.readouterr().out
    learned = {
        (row["main"].strip(), branch["text"][branch["answer_offset"] :].strip())
        for row in rows
        for branch in row["branches"]
    }
    counts = Counter(record["passage"] for record in asked)
    assert learned == {(one["passage"], one["answers"][0]) for one in asked if counts[one["passage"]] > 1}


def test_items_of_a_list():
    listed = "Some fruits:\n1. apple\n2) pear\n- fig: sweet"
    records = _alpaca(("fruits?", listed), ("more?", "1. a\n2. b\nThat is all."), ("none?", "No list."))
    (row,) = _converted(records, "--by", "items")
    assert row == {"main": "fruits?\nSome fruits:\n", "branches": ["apple", "pear", "fig: sweet"]}


def test_turns():
    turns = [("system", "Be brief."), ("user", "a?"), ("assistant", "b"), ("user", "c?"), ("assistant", "d")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (row,) = _converted([record], "--by", "turns", "--question_format", "Q {question} A")
    assert row["main"] == "Be brief.\n"
    assert row["branches"] == [{"text": "Q a? A b", "answer_offset": 6}, {"text": "Q c? A d", "answer_offset": 6}]


def test_texts_as_before():
    assert _converted(_alpaca(("a?", "b")), "--by", "text") == [{"text": "a?\nb"}]
    Path("out.jsonl").unlink()
    assert _converted([{"text": "plain"}], "--by", "text") == [{"text": "plain"}]


def test_parallel_reads_it(tmp_path):
    records = [{"passage": f"abc {n}", "question": f"de {k}?", "answer": f"ij {k}"} for n in range(8) for k in range(3)]
    rows = _converted(records, "--by", "questions")
    read = [record[BRANCHED] for record in open_branches(CorpusSettings(["out.jsonl"]))]
    assert [one.main for one in read] == [row["main"] for row in rows]
    assert {branch.text[branch.answer_offset :] for one in read for branch in one.branches} == {
        f" ij {k}" for k in range(3)
    }
    model = write_model("llama", tmp_path / "model", small_tokenizer())
    words = ["parallel", "--model", str(model), "--data", "out.jsonl", "--num_training_steps", "1"]
    assert main([*words, "--validation_frac", "0", "--output_dir", "run"]) == 0


REFUSED = {
    "nothing_to_branch": (["--by", "items"], "Not one main text has 2 branches --by items"),
    "format": (["--prompt_format", "x"], "has no {prompt}"),
    "fewest": (["--min_branches", "0"], "min_branches is 0"),
    "folder": (["--output_file", "nowhere/out.jsonl"], "folder that does not exist"),
    "there": (["--output_file", "data.jsonl"], "is there already"),
    "shape": (["--by", "questions"], "are no passage with a question"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input(case, capsys):
    flags, said = REFUSED[case]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, _alpaca(("a?", "b"), ("a?", "c")))))
    output = [] if "--output_file" in flags else ["--output_file", "out.jsonl"]
    assert main(["convert_branches", "--data", "data.jsonl", *output, *flags]) == 2
    assert said in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir()) == ["data.jsonl"]


def test_plain_text_has_no_answers(capsys):
    Path("data.jsonl").write_text(json.dumps({"text": "abc"}))
    assert main(["convert_branches", "--data", "data.jsonl", "--output_file", "out.jsonl"]) == 2
    assert "say --by text" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(capsys):
    Path("data.jsonl").write_text("\n".join(map(json.dumps, _alpaca(("a?", "b"), ("a?", "c")))))
    assert main(["convert-branches", "--data", "data.jsonl", "--output_file", "out.jsonl", "--dry_run"]) == 0
    assert capsys.readouterr().out == "would write 1 rows with 2 branches\n"
    assert not Path("out.jsonl").exists()
