"""`fivefold inspect`: the table, the picture and the numbers of a model's singular values."""

import json
import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

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


def test_the_picture_shows_the_effective_rank_of_each_kind_of_layer_over_the_blocks(model, tmp_path, monkeypatch):
    """In the colours that the singular values above have, dashed by encoder and decoder, self- and cross-attention."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **how: (figures.append(self), save(self, *args, **how)))
    model.save_pretrained(tmp_path / "model")
    assert inspect(tmp_path / "model", "--output_dir", tmp_path / "out") == 0
    layers = _layers(tmp_path / "out")
    axes = {each.get_title(loc="left"): each for each in figures[0].axes}
    assert list(axes) == [
        "Singular values, attention", "Effective rank, attention", "Singular values, feed-forward",
        "Effective rank, feed-forward",
    ]  # fmt: skip
    for panel, per_block, places in (
        ("attention", 12, ["encoder SelfAttention", "decoder SelfAttention", "decoder EncDecAttention"]),
        ("feed-forward", 4, ["encoder", "decoder"]),
    ):
        values, ranks = (axes[f"{what}, {panel}"] for what in ("Singular values", "Effective rank"))
        colours = [{line.get_label(): line.get_color() for line in each.lines} for each in (values, ranks)]
        own_names = [text.get_text() for text in values.get_legend().get_texts()]
        assert all(colours[0][name] == colours[1][name] for name in own_names)
        assert {text.get_text() for text in ranks.get_legend().get_texts()} == {*own_names, *places}
        lines = [line for line in ranks.lines if len(line.get_xdata())]
        assert len(lines) == per_block
        assert all(list(line.get_xdata()) == [0, 1] for line in lines)
        drawn = sorted(rank for line in lines for rank in line.get_ydata())
        kind = {"attention": "attn", "feed-forward": "mlp"}[panel]
        assert drawn == sorted(layer["effective_rank"] for layer in layers.values() if layer["kind"] == kind)
    values, ranks = (axes[f"{what}, attention"] for what in ("Singular values", "Effective rank"))
    (colour,) = [line.get_color() for line in values.lines if line.get_label() == "k"]
    (cross_k,) = [line for line in ranks.lines if line.get_linestyle() == ":" and line.get_color() == colour]
    names = [f"decoder.block.{block}.layer.1.EncDecAttention.k" for block in (0, 1)]
    assert list(cross_k.get_ydata()) == [layers[name]["effective_rank"] for name in names]


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
