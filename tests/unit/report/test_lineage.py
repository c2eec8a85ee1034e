"""A lineage is found wherever its runs lie, in order, and what is lost is said."""

import json
import shutil

import pytest
import yaml

from fivefold.cli import main
from fivefold.errors import ConfigError
from fivefold.report.lineage import handed_over, read_lineage


@pytest.fixture
def stages(tmp_path, write_run, monkeypatch):
    """Three runs under demo/, named from the folder above it, as commands name them."""
    monkeypatch.chdir(tmp_path)
    demo = tmp_path / "demo"
    for name, model in (("pre", None), ("sft", "demo/pre/step_000020"), ("dpo", "demo/sft/last")):
        write_run(demo / name, settings={"lr": 1e-3, "model": model})
    with (demo / "dpo" / "log.jsonl").open("a") as file:
        line = {"step": 51, "eval_loss": 0.6, "eval_reward_margin": 0.25, "eval_reward_accuracy": 0.75, "seconds": 9}
        file.write(json.dumps(line) + "\n")
    return demo


def names(lineage):
    return [run.name for run in lineage.runs]


def test_the_stages_come_in_order(stages, tmp_path, monkeypatch):
    lineage = read_lineage(stages / "dpo")
    assert (names(lineage), lineage.origin) == (["pre", "sft", "dpo"], "")
    assert handed_over(lineage.runs[0], lineage.runs[1]) == 20  # of 50
    assert handed_over(lineage.runs[1], lineage.runs[2]) is None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # found from the runs' own place
    assert names(read_lineage(stages / "dpo")) == ["pre", "sft", "dpo"]


def test_one_page_holds_them_all(stages, capsys):
    assert main(["report", "demo/dpo"]) == 0
    page = (stages / "dpo" / "report.html").read_text(encoding="utf-8")
    assert "<h1>pre \u2192 sft \u2192 dpo</h1>" in page
    assert "sft went on from step 20 of pre." in page
    assert "75.0%" in page
    assert page.count('<figure class="wide">') == 4  # what all have; the margins stand beside each other
    assert page.count("<figure>") == 2
    printed = capsys.readouterr().out
    assert [line.partition(":")[0] for line in printed.splitlines()[:3]] == ["pre", "sft", "dpo"]
    assert main(["report", "demo/dpo", "--no_lineage", "--output_dir", "alone"]) == 0
    assert "sft" not in capsys.readouterr().out


def test_a_parent_that_is_gone_is_said(stages, capsys):
    shutil.rmtree(stages / "pre")
    assert main(["report", "demo/dpo"]) == 0
    sentence = "sft started from demo/pre/step_000020, but there is no run in demo/pre any more."
    assert sentence in capsys.readouterr().out
    assert sentence in (stages / "dpo" / "report.html").read_text()


@pytest.mark.parametrize(
    ("model", "origin"),
    [
        ("google/t5-v1_1-small", "pre started from google/t5-v1_1-small."),
        ("demo/dpo/final", "pre started from demo/dpo/final, which is one of these runs again."),
    ],
)
def test_lineages_that_begin_elsewhere_or_bite_their_tail(stages, model, origin):
    (stages / "pre" / "run.yaml").write_text(yaml.safe_dump({"model": model}))
    lineage = read_lineage(stages / "dpo")
    assert (names(lineage), lineage.origin) == (["pre", "sft", "dpo"], origin)


def test_a_lineage_is_of_one_run(stages, capsys):
    from fivefold.commands.report import ReportSettings

    with pytest.raises(ConfigError, match="name the last one"):
        ReportSettings(runs=["a", "b"], output_dir="c", lineage=True)
    assert main(["report", "demo/pre", "--lineage"]) == 0
    assert "pre started from fresh weights" in capsys.readouterr().out
