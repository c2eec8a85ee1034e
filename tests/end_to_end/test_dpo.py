"""`fivefold dpo` from its command line: T5s and decoders, dense, low rank and with adapters; resumed; bad input."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.cli import main
from fivefold.lowrank.convert import convert
from fivefold.models.load import load_model
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi", "Tokyo", "Quito", "Accra", "Hanoi")
SHAPE = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.1}
SETTINGS = {
    "num_training_steps": 4,
    "save_every": 2,
    "eval_every": 2,
    "log_every": 1,
    "batch_size": 4,
    "input_length": 64,
    "target_length": 48,
    "validation_frac": 0.3,
    "dtype": "float32",
    "lr": 1e-3,
    "kl_prompts": 2,
    "kl_tokens": 8,
}


def records() -> list[dict]:
    return [
        {
            "prompt": f"Where is {city}, and is it {what}?",
            "chosen": f"{city} is a city, and {what} it is.",
            "rejected": f"No {what} {city} " * (1 + number % 3),
        }
        for number, city in enumerate(CITIES)
        for what in ("old", "large", "cold")
    ]


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch) -> None:
    """A dozen of them take longer than the run they are of."""
    if request.node.name != "test_the_report_has_its_pictures":
        monkeypatch.setattr("fivefold.commands.stages.stage.write_report", lambda *_: "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Tiny models of every kind with their tokenizer, and pairs."""
    folder = tmp_path_factory.mktemp("dpo")
    texts = [text for record in records() for text in record.values()]
    tokenizer = train_tokenizer(iter(texts), TokenizerSettings(output_dir="", vocab_size=460)).tokenizer
    vocab_size = -(-len(tokenizer) // 8) * 8
    torch.manual_seed(0)
    low_rank = T5Model(T5Config(vocab_size=vocab_size, **SHAPE))
    convert(low_rank, scope="all", attn_rank=8, mlp_rank=8, init="spectral")
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    models = {
        "t5": T5Model(T5Config(vocab_size=vocab_size, **SHAPE)),
        "llama": LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=64, **shape, **ids)),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    from fivefold.training.checkpoint import save_final

    save_final(folder, model=low_rank, tokenizer=tokenizer, loop_state={}, run_settings={})
    (folder / "final").rename(folder / "low_rank")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records()))
    lora = {"peft_type": "LORA", "r": 4, "target_modules": ["q", "v"], "lora_dropout": 0.3}
    (folder / "lora.json").write_text(json.dumps(lora))
    return folder


def dpo(folder: Path, model: str, run: Path, *words: str, **changes: object) -> list[dict]:
    """Run it, and read the log."""
    flags = [f"--{name}={value}" for name, value in (SETTINGS | changes).items() if value is not None]
    named = ["--model", str(folder / model), "--data", str(folder / "pairs.jsonl"), "--output_dir", str(run)]
    assert main(["dpo", *named, "--reference_cache", str(folder / "cache"), *flags, *words]) == 0
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = (run / "final").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("packing", [(), ("--packing",)], ids=["padded", "packed"])
@pytest.mark.parametrize("model", ["t5", "llama", "low_rank"])
def test_it_starts_at_ln_2_and_learns(folder, tmp_path, model, packing):
    log = dpo(folder, model, tmp_path / "run", *packing)
    first, last = (line for line in log if line["step"] in (0, 4) and "eval_loss" in line)
    assert first["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["eval_reward_margin"] == pytest.approx(0, abs=1e-5)
    assert first["eval_kl"] == pytest.approx(0, abs=1e-5)
    assert last["eval_loss"] < first["eval_loss"]
    assert last["eval_reward_margin"] > 0
    assert last["eval_pairs"] == first["eval_pairs"] > 0
    assert "eval_perplexity" not in last
    trained = {line["step"]: line for line in log if "loss" in line}
    assert trained[1]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert trained[4]["reward_accuracy"] > 0.5
    opened = load_model(str(tmp_path / "run" / "final"))
    assert type(opened) is type(load_model(str(folder / model)))
    if model != "llama":
        assert opened.config.dropout_rate == 0.1  # off in the run alone


def test_the_report_has_its_pictures(folder, tmp_path):
    dpo(folder, "t5", tmp_path / "run", num_training_steps=2)
    for name in ("report.html", "loss.png", "reward_margin.png", "rewards.png", "reward_accuracy.png", "kl.png"):
        assert (tmp_path / "run" / name).is_file()
    assert not (tmp_path / "run" / "pairs.png").exists()  # a count is no curve


def test_a_live_reference_gives_the_same_run(folder, tmp_path):
    """Up to rounding: the two see their rows in another order."""
    one, other = dpo(folder, "t5", tmp_path / "one"), dpo_live(folder, "t5", tmp_path / "other")
    for ours, theirs in zip(one, other, strict=True):
        for name in ("loss", "reward_margin", "eval_loss", "eval_kl"):
            if name in ours:
                assert theirs[name] == pytest.approx(ours[name], abs=1e-4)


def dpo_live(folder: Path, model: str, run: Path) -> list[dict]:
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    named = ["--model", str(folder / model), "--data", str(folder / "pairs.jsonl"), "--output_dir", str(run)]
    assert main(["dpo", *named, *flags, "--reference", "live"]) == 0
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_resumed_equals_uninterrupted(folder, tmp_path):
    dpo(folder, "t5", tmp_path / "whole", "--packing")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    shutil.rmtree(tmp_path / "cut" / "final")
    shutil.rmtree(tmp_path / "cut" / "step_000004")
    log = dpo(folder, "t5", tmp_path / "cut", "--packing", "--resume")
    expected = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    timing = ("seconds", "tokens_per_second", "memory_bytes")
    assert [{name: line[name] for name in line if name not in timing} for line in log] == [
        {name: line[name] for name in line if name not in timing} for line in expected
    ]
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by the old name
def test_an_adapter_is_compared_with_the_model_without_it(folder, tmp_path):
    log = dpo(folder, "t5", tmp_path / "run", "--adapter", str(folder / "lora.json"), lr=0.03)
    assert log[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert log[-1]["eval_loss"] < log[0]["eval_loss"]
    assert (tmp_path / "run" / "final" / "adapter_config.json").is_file()
    assert not torch.equal(
        load_model(str(tmp_path / "run" / "final")).state_dict()["encoder.block.0.layer.0.SelfAttention.q.weight"],
        load_model(str(folder / "t5")).state_dict()["encoder.block.0.layer.0.SelfAttention.q.weight"],
    )


@pytest.mark.parametrize("model", ["t5", "llama"])
@pytest.mark.parametrize("loss_type", ["simpo", "orpo"])
def test_losses_without_a_reference_ask_none(folder, tmp_path, model, loss_type, capsys):
    flags = [f"--{name}={value}" for name, value in SETTINGS.items()]
    named = ["--model", str(folder / model), "--data", str(folder / "pairs.jsonl"), "--output_dir", str(tmp_path / "r")]
    assert main(["dpo", *named, *flags, "--loss_type", loss_type, "--packing"]) == 0
    assert "reference" not in capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "r" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["eval_loss"] < log[0]["eval_loss"]
    assert log[0]["eval_kl"] == pytest.approx(0, abs=1e-5)


def test_a_dry_run_changes_nothing(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(folder / "t5"), "--data", str(folder / "pairs.jsonl"), "--dry_run"]
    assert main(["dpo", *words]) == 0
    printed = capsys.readouterr().out
    assert "-m fivefold dpo " in printed
    assert "lr: 5.0e-06" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "recipes" / "dpo").glob("*.yaml")), ids=str)
def test_recipes_resolve_with_a_model(folder, tmp_path, recipe, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model", str(folder / "t5"), "--data", str(folder / "pairs.jsonl"), "--dry_run"]
    assert main(["dpo", "--recipe", str(recipe), *words]) == 0
    assert "kept for the backward pass" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model="], "--model is missing"),
        (["--dropout_rate", "0.1"], "dpo trains without dropout"),
        (["--compile"], "--compile would compile anew"),
        (["--loss_type", "simpo", "--reference", "live"], "--reference would change nothing with --loss_type simpo"),
        (["--loss_type", "orpo", "--beta", "0.3"], "--loss_type orpo has no beta"),
        (["--reference", "live", "--reference_cache", "x"], "--reference live has no reference_cache"),
        (["--kl_prompts", "-1"], "kl_prompts is -1"),
        (["--reference_model", "LLAMA"], "is no t5 as --model is"),
        (["--data", "SAME"], "the chosen and the rejected answer are the same; that is broken line number 1"),
        (["--data", "UNANSWERED"], "`fivefold rejected` writes them"),
        (["--data", "TWINS", "--target_length", "1"], "There are no pairs to train on"),
    ],
)
def test_bad_input_is_one_sentence(folder, tmp_path, capsys, words, message):
    record = records()[0]
    (tmp_path / "same.jsonl").write_text(json.dumps(record | {"rejected": record["chosen"]}) + "\n")
    (tmp_path / "unanswered.jsonl").write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": None}) + "\n")
    twins = [record | {"prompt": city, "chosen": "old city", "rejected": "old town"} for city in CITIES]
    (tmp_path / "twins.jsonl").write_text("".join(json.dumps(twin) + "\n" for twin in twins))
    places = {
        "LLAMA": folder / "llama",
        "TWINS": tmp_path / "twins.jsonl",
        "SAME": tmp_path / "same.jsonl",
        "UNANSWERED": tmp_path / "unanswered.jsonl",
    }
    words = [str(places.get(word, word)) for word in words]
    given = {"model": str(folder / "t5"), "data": str(folder / "pairs.jsonl"), "output_dir": str(tmp_path / "run")}
    if words == ["--model="]:
        words = given.pop("model")[:0].split()
    rest = [word for name, value in given.items() if f"--{name}" not in words for word in (f"--{name}", value)]
    defaults = {"reference_cache": str(tmp_path / "cache"), "validation_frac": "0.3", "batch_size": "2"}
    if "live" in words or "orpo" in words:
        defaults.pop("reference_cache")
    rest += [word for name, value in defaults.items() if f"--{name}" not in words for word in (f"--{name}", value)]
    assert main(["dpo", *rest, *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
