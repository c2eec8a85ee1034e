"""The command lines that people coming from LORO, its T5 fork and GaLore type, only the program's name replaced."""

import json
import logging
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from fivefold.cli import main
from fivefold.spellings import ALIASES

T5_SMALL_RANK_64 = r"""
fivefold pretrain \
    --model_type t5 \
    --model_config configs/t5_small_normal.json \
    --optimizer loro_adamw \
    --loro_scope all \
    --loro_attn_rank 64 \
    --loro_mlp_rank 64 \
    --batch_size 8 \
    --total_batch_size 64 \
    --lr 1e-4 \
    --num_training_steps 1000
"""
T5_SMALL_RANK_128 = r"""
fivefold pretrain \
    --model_type t5 \
    --model_config configs/t5_small_normal.json \
    --optimizer loro_adamw \
    --loro_scope all \
    --loro_attn_rank 128 \
    --loro_mlp_rank 128 \
    --batch_size 16 \
    --total_batch_size 128 \
    --lr 2e-4 \
    --num_training_steps 5000 \
    --warmup_steps 500 \
    --eval_every 1000
"""
T5_BASE_RANK_256 = r"""
fivefold pretrain \
    --model_type t5 \
    --model_config configs/t5_base_normal.json \
    --optimizer loro_adamw \
    --loro_scope all \
    --loro_attn_rank 256 \
    --loro_mlp_rank 256 \
    --batch_size 8 \
    --total_batch_size 64 \
    --lr 1e-4 \
    --num_training_steps 10000 \
    --warmup_steps 1000 \
    --eval_every 2000
"""
# LORO's own script for LLaMA-60M; --model_type is all that is new.
LLAMA_60M = r"""
fivefold pretrain --model_type llama --single_gpu --model_config configs/llama_60m.json --dtype bfloat16 \
    --batch_size 256 --total_batch_size 512 --num_training_steps 10000 --save_every 1000 --eval_every 1000 --lr 0.01 \
    --scheduler cosine_restart --warmup_steps 1000 --min_lr_ratio 0.1 --cosine_restart_freq 500 \
    --lr_adjust_steps -1000 --weight_decay 0 --optimizer loro_adamw --loro_refresh all --loro_refresh_freq 500 \
    --loro_scope all --loro_init xavier --loro_attn_rank 128 --loro_mlp_rank 128 --loro_type loro --loro_freq 500 \
    --loro_lr_scaler -1
"""
# GaLore's own script for the same model, full size.
GALORE_60M = r"""
fivefold pretrain --model_type llama \
    --model_config configs/llama_60m.json \
    --lr 0.01 \
    --galore_scale 0.25 \
    --rank 128 \
    --update_proj_gap 200 \
    --batch_size 256 \
    --total_batch_size 512 \
    --num_training_steps 10000 \
    --warmup_steps 1000 \
    --weight_decay 0 \
    --dtype bfloat16 \
    --eval_every 1000 \
    --optimizer galore_adamw
"""
LINES = {
    "t5_small_rank_64": T5_SMALL_RANK_64,
    "t5_small_rank_128": T5_SMALL_RANK_128,
    "t5_base_rank_256": T5_BASE_RANK_256,
    "llama_60m": LLAMA_60M,
    "galore_60m": GALORE_60M,
}
# What the reference does where its users say nothing.
REFERENCE = {
    "data": ["c4_en"],
    "validation_data": ["c4_en"],
    "tokenizer": "t5-base",
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-6,
    "weight_decay": 0.0,
    "scheduler": "cosine",
    "min_lr_ratio": 0.1,
    "cosine_restart_warmup": 5,
    "lr_adjust_steps": 0,
    "loro_type": "loro",
    "loro_freq": 1,
    "loro_refresh": "none",
    "loro_lr_scaler": "1.0",
    "loro_momentum": None,  # factor beside their flags
    "dtype": "bfloat16",
    "seed": 0,
}


def words_of(line: str) -> list[str]:
    """As a shell would split it, the program's name left out."""
    return shlex.split(line.replace("\\\n", " "))[1:]


def flags_of(words: list[str]) -> dict[str, str]:
    """Flags and their values."""
    return {
        word.removeprefix("--"): after
        for word, after in zip(words, [*words[1:], "--"], strict=True)
        if word.startswith("--") and not after.startswith("--")
    }


def t5_parameters(width: int, inner: int, heads: int, layers: int, rank: int) -> int:
    """Of a tied T5 with as many blocks in the decoder as in the encoder, all 16 matrices of a pair of them factored."""
    attention, feed_forward = 12 * rank * (width + width), 4 * rank * (width + inner)
    return 32128 * width + 2 * 32 * heads + (5 * layers + 2) * width + layers * (attention + feed_forward)


def llama_parameters(width: int, inner: int, layers: int, rank: int | None) -> int:
    """Of an untied LLaMA, all 7 matrices of a block factored, or none."""
    block = 4 * rank * (width + width) + 3 * rank * (width + inner) if rank else width * (4 * width + 3 * inner)
    return 2 * 32000 * width + (2 * layers + 1) * width + layers * block


PARAMETERS = {
    "t5_small_rank_64": (96, t5_parameters(512, 2048, 8, 6, rank=64)),
    "t5_small_rank_128": (96, t5_parameters(512, 2048, 8, 6, rank=128)),
    "t5_base_rank_256": (192, t5_parameters(768, 3072, 12, 12, rank=256)),
    "llama_60m": (56, llama_parameters(512, 1376, 8, rank=128)),
    "galore_60m": (None, llama_parameters(512, 1376, 8, rank=None)),
}


@pytest.mark.parametrize("name", LINES)
def test_as_they_are_they_resolve_to_the_reference(name, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fivefold")
    words = words_of(LINES[name])
    assert main([*words, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    settings = yaml.safe_load(printed.split("\n\n")[0])
    typed = {ALIASES.get(flag, flag): yaml.safe_load(value) for flag, value in flags_of(words).items()}
    for flag, value in (REFERENCE | typed).items():
        assert settings[flag] == value or float(settings[flag]) == float(value), flag
    layers, parameters = PARAMETERS[name]
    rank = typed.get("loro_attn_rank")
    assert (f"{layers} linear layers are products of rank {rank}\n" in printed) == (rank is not None)
    assert f"parameters     {parameters:,}, of which {parameters:,} train" in printed
    assert f"batch          {typed['total_batch_size']} samples a step" in printed
    for hub_id in ("allenai/c4", "t5-base"):
        assert f"unchecked      {hub_id} (a Hub id" in printed
    config = typed["model_config"]
    assert f"There is no file {config}; using the preset {re.sub('.*/|.json', '', config)}." in caplog.text
    assert ("--single_gpu changes nothing" in caplog.text) == ("--single_gpu" in words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("model_type", ["t5", "llama"])
def test_full_rank_baselines_are_one_flag_away(optimizer, model_type, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", "--model_type", model_type, "--optimizer", optimizer, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed.split("\n\n")[0])["optimizer"] == optimizer
    assert "low rank" not in printed


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("lr", "LORO's own default is 1e-4"),
        ("grad_clipping", "0 turns clipping off, LORO's default"),
        ("eval_every", "LORO's default is 5000."),
        ("save_every", "LORO's default is 10000."),
        ("loro_attn_rank", "by default 128"),
    ],
)
def test_help_says_where_the_reference_has_another_default(flag, sentence, capsys):
    assert main(["pretrain", "--help"]) == 0
    helps = re.split(r"\n  --", capsys.readouterr().out)
    (text,) = [" ".join(text.split()) for text in helps if text.startswith(f"{flag} ")]
    assert sentence in text


def test_what_only_names_a_run_is_accepted_with_a_note(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fivefold")
    assert main(["pretrain", "--name", "test", "--tags", "c4,60m", "--dry_run"]) == 0
    assert "--name changes nothing: a run goes by the name of its folder" in caplog.text
    assert "--tags changes nothing: Weights & Biases shows every setting" in caplog.text


RECIPES = sorted((Path(__file__).parents[2] / "recipes" / "pretrain").glob("loro_*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
@pytest.mark.parametrize(
    "words", ["--optimizer loro_muon", "--optimizer spectron --scheduler const", "--optimizer adam --loro_scope null"]
)
def test_another_optimizer_on_a_recipe_is_one_flag(words, recipe, tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fivefold")
    words = ["pretrain", "--recipe", str(recipe), *words.split()]

    def resolved(*words: str) -> dict:
        assert main([*words, "--print_config"]) == 0
        return yaml.safe_load(capsys.readouterr().out)

    before, after = resolved(*words[:3]), resolved(*words)
    left_out = {name for name in before if before[name] != after[name]} - {"optimizer", "scheduler", "loro_scope"}
    if before["optimizer"] == "loro_adamw":
        assert {"loro_freq", "loro_refresh", "loro_refresh_freq"} <= left_out
    said = " ".join(re.findall(r"leaves out what --recipe says of (.*)\.", caplog.text))
    assert left_out == set(re.findall(r"\w+", said))
    assert main([*words, "--dry_run"]) == 0
    assert ("low rank" in capsys.readouterr().out) == ("null" not in words)


def test_flags_of_loros_that_are_typed_beside_another_optimizer_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--recipe", str(RECIPES[0]), "--optimizer", "loro_muon", "--loro_freq", "500", "--dry_run"]
    assert main(words) == 2
    assert "loro_muon has no loro_freq; that is of --optimizer loro_adamw" in capsys.readouterr().err


# What makes a run long, and what it is here; every flag of LORO's own stays as it was typed.
SHORTER = {
    "--num_training_steps": "3",
    "--warmup_steps": "1",
    "--batch_size": "4",
    "--total_batch_size": "8",
}
SHAPES: dict[str, dict[str, int]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 512},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "max_sequence_length": 64,  # as the configurations of LORO and GaLore call it
    },
}


@pytest.mark.parametrize("name", LINES)
def test_they_train(name, small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = words_of(LINES[name])
    flags = flags_of(words)
    (tmp_path / "configs").mkdir()
    (tmp_path / flags["model_config"]).write_text(json.dumps(SHAPES[flags["model_type"]]))
    words = [SHORTER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    words += ["--data", str(small_run.text), "--tokenizer", str(small_run.tokenizer), "--validation_frac", "0.05"]
    words += ["--input_length", "32", "--log_every", "1", "--output_dir", "run"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in log if "loss" in line]
    assert len(losses) == 3
    assert all(0 < loss < 10 for loss in losses)
    if "loro_scope" not in flags:
        return
    capped = rf"rank capped at the smaller side of \d+ layers, .* 32 instead of {flags['loro_attn_rank']}"
    assert re.search(capped, printed)
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["low_rank"]["init"] == "xavier"
    assert set(config["low_rank"]["ranks"].values()) == {32}
    weights = load_file(tmp_path / "run" / "final" / "low_rank.safetensors")
    for layer in config["low_rank"]["ranks"] if flags.get("loro_freq", "1") == "1" else ():
        left, right = (weights[f"{layer}.{side}.weight"].double() for side in ("left", "right"))
        gram = left.mT @ left
        # An exact step splits the singular values evenly; the factors are float32.
        torch.testing.assert_close(right @ right.mT, gram, rtol=0, atol=1e-5 * gram.abs().max().item())
