"""The demo's steps in their order, each cut to a few steps of training."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest

from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
SHORTER = {
    r"--num_training_steps \d+ --eval_every \d+": "--num_training_steps 4 --eval_every 2",
    r"--epochs [\d.]+": "--num_training_steps 4",
}


@pytest.fixture
def demo(corpus_cache, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    whole = demo.run

    def shorter(command, typed=None):
        for long, short in SHORTER.items():
            command = re.sub(long, short, command)
        return whole(command, typed)

    monkeypatch.setattr(demo, "run", shorter)
    monkeypatch.setattr(demo, "NUM_TAUGHT", 300)
    monkeypatch.setattr(demo, "NUM_COMPARED", 100)
    monkeypatch.setattr(sys, "argv", ["demo.py", "--output_dir", str(tmp_path / "demo")])
    return demo


def texts(file: Path, field: str) -> list[str]:
    return [json.loads(line)[field] for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_held_out_review_is_in_what_any_step_reads(demo, tmp_path):
    held_out = {review.text for review in demo.split_reviews(tmp_path / "demo", seed=3)}
    everything = {record["text"] for record in open_corpus(CorpusSettings(["zh_reviews"]))}
    assert 1000 < len(held_out) < len(everything) / 10
    raw = texts(tmp_path / "demo" / "reviews.jsonl", "text")
    taught = texts(tmp_path / "demo" / "taught.jsonl", "prompt")
    compared = texts(tmp_path / "demo" / "compared.jsonl", "prompt")
    assert {*raw} == everything - held_out
    asked = [question.removeprefix(demo.QUESTION) for question in taught + compared]
    assert len({*asked}) == len(asked) == 400
    assert {*asked} <= {*raw}


@pytest.mark.slow
def test_it_runs_from_reviews_to_chat(demo, tmp_path, capfd):
    demo.main()
    printed = capfd.readouterr().out
    table = printed.partition("Right answers to 1,462 held-out reviews")[2]
    assert len(re.findall(r"^[\w, ]+ \d+\.\d%  +\d+ s$", table, flags=re.MULTILINE)) == 3
    assert printed.count(f"> {demo.QUESTION}") == len(demo.SAID)
    assert (tmp_path / "demo" / "dpo" / "report.html").is_file()
