"""`fivefold branches`: what it writes, how it draws, and what it refuses."""

import json
from pathlib import Path

import pytest
from chat_models import small_tokenizer, write_model

from fivefold.branches.folder import save_with_scheme
from fivefold.branches.settings import BranchScheme
from fivefold.cli import main
from fivefold.models.load import load_model
from fivefold.tokenizer.save import save_tokenizer

MAIN = "abc de fgh ij"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A decoder that has been trained on three branches at most, told apart by 2D RoPE."""
    folder = tmp_path_factory.mktemp("trained")
    plain = load_model(str(write_model("llama", folder / "plain", small_tokenizer())))
    save_with_scheme(plain, BranchScheme(0.5), 3)
    plain.save_pretrained(str(folder / "final"))
    save_tokenizer(small_tokenizer(), folder / "final")
    return folder / "final"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _branches(model, *words):
    return main(["branches", "--model", str(model), "--main", MAIN, "--max_new_tokens", "6", *map(str, words)])


def _written(model, *words):
    assert _branches(model, *words, "--output_file", "out.jsonl") == 0
    return [json.loads(line)["output"] for line in Path("out.jsonl").read_text(encoding="utf-8").splitlines()]


def test_it_prints_what_it_writes(model, capsys):
    texts = _written(model, "--branches", "ab", "cd e")
    printed = capsys.readouterr().out.splitlines()
    assert printed == [f"1  ab{texts[0]}", f"2  cd e{texts[1]}"]


def test_openings_are_shown_where_nothing_follows(model, capsys, monkeypatch):
    monkeypatch.setattr("fivefold.serving.branches.write_branches", lambda *_: iter(()))
    assert _branches(model, "--branches", "ab", "cd") == 0
    assert capsys.readouterr().out.splitlines() == ["1  ab", "2  cd"]


@pytest.mark.parametrize("cache", ["flat", "expanded"])
def test_caches_agree(model, cache):
    assert _written(model, "--branches", "ab", "cd e", "--cache", cache) == _written(model, "--branches", "ab", "cd e")


def test_draws_follow_from_the_seed_and_the_branchs_own_number(model):
    three = _written(model, "--num_branches", 3, "--do_sample", "--seed", 5)
    assert _written(model, "--num_branches", 3, "--do_sample", "--seed", 5) == three
    assert _written(model, "--num_branches", 2, "--do_sample", "--seed", 5) == three[:2]
    assert _written(model, "--num_branches", 3, "--do_sample", "--seed", 6) != three
    assert len(set(three)) == 3


def test_main_out_of_a_file(model):
    Path("main.txt").write_text(MAIN)
    expected = _written(model, "--branches", "ab")
    words = ["branches", "--model", str(model), "--main_file", "main.txt", "--max_new_tokens", "6", "--branches", "ab"]
    assert main([*words, "--output_file", "other.jsonl"]) == 0
    assert json.loads(Path("other.jsonl").read_text(encoding="utf-8"))["output"] == expected[0]


def test_more_branches_than_trained_are_warned_of(model, caplog):
    assert _branches(model, "--num_branches", 4, "--do_sample") == 0
    assert "trained with 3 at most" in caplog.text


def test_no_branches_and_a_dry_run(model, capsys):
    assert _branches(model, "--num_branches", 0) == 0
    assert capsys.readouterr().out == ""
    assert _branches(model, "--branches", "ab", "--dry_run") == 0
    assert capsys.readouterr().out.startswith("1 branches for")


REFUSED = {
    "alike": (["--num_branches", "3"], "would all say the same"),
    "none": ([], "There is no branch"),
    "both": (["--branches", "a", "b", "--num_branches", "2"], "--num_branches 2 is for branches that begin alike"),
    "negative": (["--num_branches", "-1"], "num_branches is -1"),
    "two_mains": (["--branches", "a", "--main_file", "x"], "give one of them"),
    "beams": (["--branches", "a", "--num_beams", "2"], "--num_beams would change nothing"),
    "long": (["--branches", "a" * 5000], "positions"),
    "folder": (["--branches", "a", "--output_file", "nowhere/x"], "folder that does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_settings(case, model, capsys):
    flags, said = REFUSED[case]
    assert _branches(model, *flags) == 2
    assert said in capsys.readouterr().err


def test_other_models_and_files(model, tmp_path, capsys):
    t5 = write_model("t5", tmp_path / "t5", small_tokenizer())
    assert _branches(t5, "--branches", "a") == 2
    assert "Branches are for decoders" in capsys.readouterr().err
    assert main(["branches", "--model", str(model), "--branches", "a", "--main_file", "nowhere"]) == 2
    assert "there is no such file" in capsys.readouterr().err
