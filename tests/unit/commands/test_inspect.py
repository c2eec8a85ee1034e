"""`fivefold inspect`: the table, the picture and the numbers of a model's singular values."""

import json
import re
from pathlib import Path

import pytest
import torch

from fivefold import T5Config, T5Model
from fivefold.cli import main
from fivefold.lowrank.convert import convert
from fivefold.lowrank.store import save_model

NAME = "encoder.block.1.layer.1.DenseReluDense.wi"


@pytest.fixture
def model():
    torch.manual_seed(0)
    return T5Model(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))


def inspect(*words: object) -> int:
    return main(["inspect", *map(str, words)])


def _layers(folder: Path) -> dict[str, dict]:
    return {layer["name"]: layer for layer in json.loads((folder / "inspect.json").read_text())["layers"]}


def test_table_picture_and_numbers_agree_with_the_weights(model, tmp_path, capsys):
    convert(model, scope="mlp", attn_rank=8, mlp_rank=12, init="xavier")
    save_model(model, tmp_path / "model")
    assert inspect(tmp_path / "model", "--output_dir", tmp_path / "out") == 0
    output = capsys.readouterr().out
    layers = _layers(tmp_path / "out")
    assert len(layers) == 4 * 6 + 4 * 2
    assert {layer["kind"] for layer in layers.values()} == {"attn", "mlp"}
    values = torch.linalg.svdvals(model.get_submodule(NAME).dense_weight().detach().double())[:12]
    layer = layers[NAME]
    torch.testing.assert_close(torch.tensor(layer["singular_values"]).double(), values)
    assert (layer["out"], layer["in"], layer["rank"]) == (48, 32, 12)
    assert layer["condition_number"] == pytest.approx((values[0] / values[-1]).item())
    (row,) = re.findall(rf"^ {re.escape(NAME)} +(.*)$", output, flags=re.MULTILINE)
    assert row.startswith(f"48 x 32    12     {values[0]:.3g}")
    assert (tmp_path / "out" / "singular_values.png").read_bytes().startswith(b"\x89PNG")
    for name in ("singular_values.png", "inspect.json"):
        assert str(tmp_path / "out" / name) in output
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_a_dense_model_and_the_default_folder(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("model")
    assert inspect("model") == 0
    layer = _layers(Path("inspect"))[NAME]
    assert layer["rank"] == 32
    torch.testing.assert_close(
        torch.tensor(layer["singular_values"]), torch.linalg.svdvals(model.get_submodule(NAME).weight.detach())
    )


def test_layers_that_died_or_diverged_are_shown_too(model, tmp_path, capsys):
    convert(model, scope="all", attn_rank=8, mlp_rank=12, init="xavier")
    model.get_submodule(NAME).left.weight.data.zero_()
    broken = "decoder.block.0.layer.1.EncDecAttention.q"
    model.get_submodule(broken).right.weight.data.fill_(torch.nan)
    save_model(model, tmp_path / "model")
    assert inspect(tmp_path / "model", "--output_dir", tmp_path / "out") == 0
    layers = _layers(tmp_path / "out")
    assert layers[NAME]["effective_rank"] == 0
    assert layers[NAME]["condition_number"] is None
    assert layers[broken]["singular_values"] is None
    assert layers[broken]["largest"] is None
    assert re.search(rf"{re.escape(broken)} .* - +- +- +-", capsys.readouterr().out)


def test_a_dry_run_and_a_wrong_folder(model, tmp_path, capsys):
    model.save_pretrained(tmp_path / "model")
    assert inspect(tmp_path / "model", "--output_dir", tmp_path / "out", "--dry_run") == 0
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert inspect(tmp_path / "model", "--output_dir", tmp_path / "file") == 2
    assert "is a file; name a folder" in capsys.readouterr().err
