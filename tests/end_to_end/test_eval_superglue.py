"""`eval superglue`: scores, answers and files to submit, for every kind of model; interrupted, resumed, refused."""

import json
from pathlib import Path

import pytest
from chat_models import KINDS, small_tokenizer, write_model
from superglue_folder import write_superglue_folder

from fivefold.cli import main
from fivefold.evaluation import respond
from fivefold.evaluation.superglue.report import read_verdicts
from fivefold.evaluation.superglue.score import score_task
from fivefold.evaluation.superglue.tasks import TASKS


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_superglue_folder(Path("data"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    tokenizer, folder = small_tokenizer(), tmp_path_factory.mktemp("models")
    return {kind: write_model(kind, folder / kind, tokenizer) for kind in KINDS}


def score(model, *words):
    return main(["eval", "superglue", "--model", str(model), "--data_dir", "data", *words])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scoring", ["generate", "likelihood"])
def test_every_kind_of_model(models, kind, scoring, capsys):
    assert score(models[kind], "--scoring", scoring, "--output_dir", "out", "--shots", "1") == 0
    said = capsys.readouterr().out
    summary = json.loads(Path("out/superglue.json").read_text())
    names = [
        name for name, task in TASKS.items() if not task.is_diagnostic and (scoring, name) != ("likelihood", "wsc")
    ]
    assert list(summary["scores"]) == names
    assert ("the mean over its eight tasks" in said) == (summary["average"] is not None) == (scoring == "generate")
    for name, verdicts in read_verdicts(Path("out/superglue_examples.jsonl")).items():
        assert len(verdicts) == summary["scores"][name]["num_examples"] == (12 if name == "multirc" else 6)
        lines = Path(f"out/submission/{TASKS[name].folder}.jsonl").read_text().splitlines()
        assert len(lines) == 6
        # The numbers follow from what was written down.
        if name not in ("wsc", "record"):  # whose baselines look into the text
            assert score_task(TASKS[name], verdicts).metrics == summary["scores"][name]["metrics"]
        if scoring == "likelihood":
            assert summary["scores"][name]["num_outside"] == 0
    assert not list(Path("out").glob("*.partial"))


def test_diagnostics_and_a_split_without_labels(models, capsys):
    assert score(models["t5"], "--output_dir", "a", "--tasks", "axb", "axg") == 0
    said = capsys.readouterr().out
    assert "matthews" in said
    assert "gender_parity" in said
    assert score(models["t5"], "--output_dir", "b", "--split", "test", "--tasks", "cb", "multirc") == 0
    assert "no labels, so no scores: cb, multirc" in capsys.readouterr().out
    assert json.loads(Path("b/superglue.json").read_text())["scores"] == {}
    assert len(Path("b/submission/CB.jsonl").read_text().splitlines()) == 6


def test_interrupted_and_resumed_is_uninterrupted(models, monkeypatch, capsys):
    flags = ("--tasks", "boolq", "cb", "--batch_size", "2", "--output_dir")
    assert score(models["llama"], *flags, "whole") == 0
    write, calls = respond.Writer.write, []

    def break_off(self, *arguments, **more):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return write(self, *arguments, **more)

    monkeypatch.setattr(respond.Writer, "write", break_off)
    assert score(models["llama"], *flags, "part") == 130
    assert "the same command with --resume goes on with part/superglue.partial" in capsys.readouterr().err
    assert not Path("part/superglue.json").exists()
    assert score(models["llama"], *flags, "part") == 2
    assert "give --resume to go on, or --overwrite" in capsys.readouterr().err
    assert score(models["llama"], *flags, "part", "--resume", "--split", "train") == 2
    assert "was begun with split validation, which is train now" in capsys.readouterr().err
    assert score(models["llama"], *flags, "part", "--resume") == 0
    assert len(calls) == 7  # six batches, one of them twice
    for file in ("superglue_examples.jsonl", "submission/BoolQ.jsonl"):
        assert Path("part", file).read_bytes() == Path("whole", file).read_bytes()


def test_results_of_a_run_stand_in_it(models, capsys):
    run = models["t5"].parent
    (run / "run.yaml").write_text("")
    assert score(models["t5"], "--tasks", "cb", "--dry_run") == 0
    assert f"would write {run / 'eval'}" in capsys.readouterr().out
    (run / "run.yaml").unlink()
    assert score(models["t5"], "--tasks", "cb") == 0
    assert Path("eval/final/superglue.json").is_file()
    assert score(models["t5"], "--tasks", "cb") == 2
    assert "is there already; give --overwrite, or another --output_dir" in capsys.readouterr().err
    assert score(models["t5"], "--tasks", "cb", "--overwrite") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks", "boolqs"], "--tasks got 'boolqs'; there are boolq, cb"),
        (["--tasks", "wsc", "--scoring", "likelihood"], "but wsc has none: it asks for free text"),
        (["--tasks", "cb", "--split", "val2"], "CB has no val2.jsonl, which --tasks cb needs; there is test.jsonl, "),
        (["--tasks", "axb", "--shots", "1"], "--shots needs training examples, but axb has none"),
        (["--tasks", "cb", "--resume"], "--resume: there is no eval/final/superglue.partial"),
        (["--tasks", "cb", "--batch_size", "0"], "--batch_size is 0; it must be at least 1"),
        (["--tasks", "cb", "--input_length", "4"], "tokens even without its passage, but the model reads 4"),
        (["--tasks", "cb", "--shots", "-1"], "--shots and --seed at least 0"),
        (["--tasks", "cb", "--output_dir", "data/CB/val.jsonl"], "is a file; give a folder"),
    ],
)
def test_bad_input(models, words, message, capsys):
    assert score(models["t5"], *words) == 2
    assert message in capsys.readouterr().err
    assert not Path("eval/final/superglue.json").exists()


def test_a_folder_without_tasks(models, capsys):
    assert main(["eval", "superglue", "--model", str(models["t5"]), "--data_dir", "."]) == 2
    assert "--data_dir . holds none of the folders BoolQ, CB" in capsys.readouterr().err


def test_the_verbs_that_measure(capsys):
    assert main(["eval"]) == 2
    assert "'eval' needs another word; there are eval superglue" in capsys.readouterr().err
    assert main(["eval", "superglu"]) == 2
    assert "did you mean 'eval superglue'" in capsys.readouterr().err
    assert main(["eval", "superglue", "--help"]) == 0
    assert "fivefold eval superglue" in capsys.readouterr().out
