"""Python in the documentation of the methods runs as it stands, and predictions are what is printed."""

import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml

from fivefold.cli import main
from fivefold.lowrank.settings import LowRankSettings
from fivefold.models.build import build_model
from fivefold.models.settings import ModelSettings
from fivefold.objectives.full_rows import full_preferences
from fivefold.objectives.preference import PreferenceObjective
from fivefold.objectives.settings import PreferenceLossSettings
from fivefold.training.prediction import describe_cost
from fivefold.training.settings import LoopSettings, OptimizerSettings
from fivefold.training.step_cost import step_cost

ROOT = Path(__file__).parents[2]
PAGES = ("docs/methods/parts.md", "docs/methods/dpo.md")
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_it_runs(page, block):
    names: dict = {}
    exec(compile(block, page, "exec"), names)
    assert all(value.isfinite().all() for name, value in names.items() if name in ("x", "loss"))


PIPELINE = (ROOT / "docs" / "methods" / "chinese_pipeline.md").read_text(encoding="utf-8")
PREDICTIONS = re.findall(r"^\$ (fivefold .*)\n((?:[^`\n]+\n)+)", PIPELINE, flags=re.MULTILINE)


@pytest.mark.parametrize(("command", "lines"), PREDICTIONS[:2])
def test_predictions_of_the_chinese_pipeline_are_printed(command, lines, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    assert main(shlex.split(command)[1:]) == 0
    assert lines in capsys.readouterr().out


def test_the_prediction_for_dpo_is_that_of_its_recipe_on_the_model_of_pretraining():
    command, lines = PREDICTIONS[2]
    pretrain, dpo = (
        yaml.safe_load((ROOT / "recipes" / verb / "t5_zh_130m.yaml").read_text(encoding="utf-8"))
        for verb in ("pretrain", "dpo")
    )
    assert "recipes/dpo/t5_zh_130m.yaml" in command
    ranks = {name: pretrain[name] for name in ("loro_scope", "loro_attn_rank", "loro_mlp_rank")}
    assert ranks.items() <= dpo.items()
    with torch.device("meta"):
        shape = ModelSettings(model_config=pretrain["model_config"])
        model, _ = build_model(shape, LowRankSettings(**ranks), None, 0, default_init="spectral")
    loop, capacity = LoopSettings(epochs=1), (dpo["input_length"], 2 * dpo["target_length"])
    cost = step_cost(
        model,
        PreferenceObjective(PreferenceLossSettings()),
        lambda rows: full_preferences(rows, capacity, needs_reference=True),
        OptimizerSettings(dpo["optimizer"]),
        loop,
        micro_batch_size=dpo["batch_size"],
        accumulation_steps=1,
    )
    assert lines == describe_cost(cost, loop, 1) + "\n"
