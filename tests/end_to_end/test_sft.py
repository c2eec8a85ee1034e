"""fivefold sft on real instructions with tiny models: what trains, what is written, what is refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.cli import main
from fivefold.lowrank.convert import convert, factor_pairs
from fivefold.models.load import load_model
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer
from fivefold.training.telemetry import TIMING_KEYS, read_log_lines

LORA = {"peft_type": "LORA", "r": 2, "target_modules": ["q", "v"], "inference_mode": True}


@dataclass
class Bases:
    """Tiny models by name, each in a folder with its tokenizer."""

    folder: Path

    def __getitem__(self, name: str) -> str:
        return str(self.folder / name)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, corpus_cache):
    folder = tmp_path_factory.mktemp("bases")
    texts = [f"问题 {number}: 回答 the answer is {number} 好的" for number in range(200)]
    tokenizer = train_tokenizer(texts, TokenizerSettings("", vocab_size=480, num_sentinels=20)).tokenizer
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    t5, thin = (T5Model(T5Config(**shape, dropout_rate=0.1)) for _ in range(2))
    convert(thin, scope="all", attn_rank=4, mlp_rank=4, init="spectral")
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    for name, model in (("t5", t5), ("thin", thin), ("llama", LlamaForCausalLM(config))):
        model.save_pretrained(str(folder / name))
        save_tokenizer(tokenizer, folder / name)
    (folder / "lora.json").write_text(json.dumps(LORA))
    (folder / "talks.jsonl").write_text(
        "".join(
            json.dumps({"conversations": [{"from": who, "value": f"{what} {number}"} for who, what in turns]}) + "\n"
            for number in range(30)
            for turns in [[("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]]
        )
    )
    return Bases(folder)


def _words(bases, out, **changes):
    flags = {
        "data": "zh_instructions",
        "model": bases["t5"],
        "input_length": 48,
        "batch_size": 4,
        "num_training_steps": 4,
        "eval_every": 2,
        "eval_samples": 8,
        "save_every": 2,
        "log_every": 1,
        "dtype": "float32",
        "samples": 2,
        "sample_tokens": 5,
        "output_dir": out,
    }
    words = ["sft"]
    for name, value in (flags | changes).items():
        if value is not None:
            words += (
                [f"--{name}"]
                if value is True
                else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
            )
    return words


def _sft(bases, out, **changes):
    assert main(_words(bases, out, **changes)) == 0
    return Path(out)


def _weights(folder):
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("packing", [None, True])
@pytest.mark.parametrize(("model", "data"), [("t5", "zh_instructions"), ("llama", "en_instructions")])
def test_real_instructions(model, data, packing, bases, tmp_path):
    run = _sft(bases, tmp_path / "run", model=bases[model], data=data, packing=packing)
    log = read_log_lines(run / "log.jsonl")
    assert [line["step"] for line in log if "eval_loss" in line] == [0, 2, 4]
    assert 0 < log[-1]["eval_loss"] < log[0]["eval_loss"]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in samples] == [0, 0, 2, 2, 4, 4]
    assert [line["prompt"] for line in samples[:2]] == [line["prompt"] for line in samples[2:4]]
    assert all(line["prompt"][-1]["role"] == "user" and line["reference"] for line in samples)
    tokenizer = AutoTokenizer.from_pretrained(run / "final")
    assert tokenizer.chat_template
    assert main(["generate", "--model", str(run / "final"), "--text", "hello", "--max_new_tokens", "2"]) == 0


def test_a_run_that_was_stopped_ends_as_the_undisturbed_one(bases, tmp_path):
    whole = _sft(bases, tmp_path / "whole")
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken, symlinks=True)
    for name in ("step_000004", "final"):
        shutil.rmtree(broken / name)
    _sft(bases, broken, resume=True)
    first, second = (_weights(run / "final") for run in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (whole / "samples.jsonl").read_text() == (broken / "samples.jsonl").read_text()
    logs = [
        [
            {key: value for key, value in line.items() if key not in TIMING_KEYS}
            for line in read_log_lines(run / "log.jsonl")
        ]
        for run in (whole, broken)
    ]
    assert logs[0] == logs[1]


def test_what_is_frozen_stays(bases, tmp_path):
    run = _sft(bases, tmp_path / "run", freeze=["embeddings"], weight_decay=0.1)
    before, after = _weights(bases["t5"]), _weights(run / "final")
    assert torch.equal(before["shared.weight"], after["shared.weight"])
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert yaml.safe_load((run / "run.yaml").read_text())["freeze"] == ["embeddings"]


ADAPTERS = {
    "t5": LORA,
    "llama": LORA | {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.1},
    "thin": LORA | {"peft_type": "lora", "lora_dropout": 0.1},
    "llama, AdaLoRA": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tfinal": 1, "total_step": 1000},
    "thin, AdaLoRA": {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "lora_dropout": 0.1},
    "llama, PiSSA": {"peft_type": "LORA", "r": 2, "init_lora_weights": "pissa_niter_4"},
    "t5, LoRA+": LORA,
    "llama, LoRA-FA": LORA | {"target_modules": "all-linear"},
}
OPTIMIZERS = {"t5, LoRA+": "loraplus", "llama, LoRA-FA": "lorafa"}


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_is_trained_saved_resumed_and_opened_by_peft(name, bases, tmp_path):
    family = name.partition(",")[0]
    (tmp_path / "adapter.json").write_text(json.dumps(ADAPTERS[name]))
    changes = {"model": bases[family], "adapter": tmp_path / "adapter.json", "packing": True, "lr": 0.01}
    changes["optimizer"] = OPTIMIZERS.get(name, "adamw")
    changes["gradient_checkpointing"] = True if family == "llama" else None
    run = _sft(bases, tmp_path / "run", **changes)
    assert not (run / "final" / "model.safetensors").exists()
    with quiet_peft():
        opened = PeftModel.from_pretrained(load_model(bases[family]), str(run / "final"))
    weights = _weights(run / "final")
    trained = [tensor for key, tensor in weights.items() if "lora_E" in key or "lora_B" in key]
    assert any(tensor.any() for tensor in trained)
    if "AdaLoRA" in name:
        values = [tensor for key, tensor in weights.items() if "lora_E" in key]
        assert sum(int(value.count_nonzero()) for value in values) == 2 * len(values)
    assert not any(parameter.requires_grad for parameter in opened.parameters())
    ids = torch.arange(2, 12)[None]
    inputs = {"input_ids": ids, **({} if family == "llama" else {"decoder_input_ids": ids})}
    with torch.no_grad():
        ours, theirs = (model.eval()(**inputs).logits for model in (load_model(str(run / "final")), opened))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    broken = tmp_path / "broken"
    shutil.copytree(run, broken, symlinks=True)
    for name in ("step_000004", "final"):
        shutil.rmtree(broken / name)
    _sft(bases, broken, **changes, resume=True)
    again = _weights(broken / "final")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("optimizer", ["loro_muon", "adamw"])
def test_a_low_rank_model_stays_one(optimizer, bases, tmp_path):
    run = _sft(bases, tmp_path / "run", model=bases["thin"], optimizer=optimizer, packing=True)
    model = load_model(str(run / "final"))
    assert len(factor_pairs(model)) == len(factor_pairs(load_model(bases["thin"])))
    before, after = _weights(bases["thin"]), _weights(run / "final")
    assert all(before[name].shape == after[name].shape for name in before)
    assert not torch.equal(
        before["encoder.block.0.layer.0.SelfAttention.q.left.weight"],
        after["encoder.block.0.layer.0.SelfAttention.q.left.weight"],
    )


def test_conversations_of_several_turns_and_epochs(bases, tmp_path, capsys):
    run = _sft(
        bases, tmp_path / "run", data=bases["talks.jsonl"], num_training_steps=None, num_epochs=0.5, validation_frac=0.2
    )
    printed = capsys.readouterr().out
    assert "0.5 epochs of " in printed
    log = read_log_lines(run / "log.jsonl")
    answers = int(printed.split("epochs of ")[1].split()[0])
    assert log[-1]["step"] == round(answers / 2 / 4)
    model = AutoModelForSeq2SeqLM.from_pretrained(run / "final")
    assert model.config.model_type == "t5"


@pytest.mark.parametrize(("optimizer", "factors"), [("adamw", 2), ("lorafa", 1)])
def test_a_dry_run_does_nothing(optimizer, factors, bases, tmp_path, capsys):
    words = _words(bases, tmp_path / "run", adapter=bases["lora.json"], optimizer=optimizer, num_training_steps=None)
    assert main([*words, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "epochs: 3.0" in printed
    assert "-m fivefold sft " in printed
    assert f"of which {3 * 2 * factors * 2 * 16} train" in printed  # attentions, q and v, factors of 2 x 16
    assert not (tmp_path / "run").exists()


BAD = {
    "no_data": ({"data": None}, "--data is missing: name conversations"),
    "no_tokenizer": ({"model": None}, "--tokenizer is missing: a fresh model brings none"),
    "text": ({"data": "zh_reviews"}, "holds plain text, in which a T5 finds no answer to write"),
    "text_unit": ({"text_unit": "file"}, "--text_unit would change nothing with conversations"),
    "freeze": ({"freeze": "encodr"}, "--freeze encodr matches no parameter; did you mean encoder"),
    "freeze_and_adapter": (
        {"freeze": "embeddings", "adapter": "x.json"},
        "--freeze would change nothing with an adapter",
    ),
    "adapter": ({"adapter": "absent.json"}, "--adapter absent.json: there is no such file, and no preset of that name"),
    "adapter_fresh": (
        {"model": None, "tokenizer": "T5", "model_config": "t5_mini", "adapter": "LORA"},
        "An adapter needs a --model that stays as it is in its folder",
    ),
    "adapter_loro": ({"adapter": "LORA", "optimizer": "loro_muon"}, "trains low-rank layers, which an adapter leaves"),
    "template": ({"chat_template": "alpaca"}, "--chat_template alpaca is none of labels, labels_zh"),
    "epochs": ({"epochs": 2}, "epochs is 2.0 and num_training_steps 4; give one of the two"),
    "no_epochs": ({"epochs": 0, "num_training_steps": None}, "epochs is 0.0, but it must be above 0"),
    "samples": ({"samples": -1}, "--samples must be at least 0"),
    "too_short": ({"input_length": 2, "model": "LLAMA"}, "tokens have no room for a prompt"),
    "positions": ({"input_length": 500, "model": "LLAMA"}, "input_length is 500, but the model has 128 positions"),
    "unknown": ({"packng": True}, "did you mean --packing?"),
    "factors": ({"optimizer": "loro_adamw"}, "this model has none"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, bases, tmp_path, capsys):
    changes, message = BAD[name]
    places = {"LLAMA": bases["llama"], "T5": bases["t5"], "LORA": bases["lora.json"]}
    changes = {key: places.get(value, value) for key, value in changes.items()}
    assert main(_words(bases, tmp_path / "run", **changes)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert not (tmp_path / "run").exists()


def test_another_serialisation_than_the_models_is_refused(bases, tmp_path, capsys):
    run = _sft(bases, tmp_path / "run", chat_template="labels_zh")
    assert main(_words(bases, tmp_path / "next", model=run / "final", chat_template="labels")) == 2
    assert "it brings another template; leave --chat_template out to use that" in capsys.readouterr().err
    next_run = _sft(bases, tmp_path / "next", model=run / "final")
    first, second = (AutoTokenizer.from_pretrained(folder / "final").chat_template for folder in (run, next_run))
    assert first == second


def test_bad_lines_are_named_and_counted(bases, tmp_path, capsys):
    lines = (bases.folder / "talks.jsonl").read_text().splitlines(keepends=True)
    bad = '{"conversations": [{"from": "gpt", "value": "x"}]}\n'
    (tmp_path / "data.jsonl").write_text("".join([*lines[:2], bad, "{broken\n", *lines[2:]]))
    data = tmp_path / "data.jsonl"
    assert main(_words(bases, tmp_path / "run", data=data, validation_frac=0.2)) == 2
    assert "data.jsonl:3: turn 1 is the assistant's where the user's was expected" in capsys.readouterr().err
    assert main(_words(bases, tmp_path / "run", data=data, validation_frac=0.2, max_bad_lines=2)) == 0
