"""An adapter on a decoder in 4 or 8 bits: what trains, what is saved, what stays, and what is refused."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from chat_models import small_tokenizer, write_model
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from fivefold.adapters.attach import attach_adapter
from fivefold.adapters.folder import load_adapter_weights
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.cli import main
from fivefold.models.build import checkpoint_blocks
from fivefold.models.load import load_model
from fivefold.models.settings import QuantisationSettings
from fivefold.nn.quantised import is_quantised
from fivefold.training.telemetry import read_log_lines

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the tests' bitsandbytes is installed on Linux only")

FLAGS = "--input_length 64 --validation_frac 0.2 --samples 1 --sample_tokens 2 --lr 1e-2 --warmup_ratio 0 --lora_r 4 "
FLAGS += "--batch_size 4 --num_training_steps 6 --eval_every 3 --save_every 3 --keep_last 0"
FOUR = ["--use_4bit_quantization"]
BITS = {
    "nf4": FOUR,
    "nested_fp4": [*FOUR, "--use_nested_quant", "--bnb_4bit_quant_type", "fp4", "--bnb_4bit_compute_dtype", "float32"],
    "as_bfloat16": ["--load_in_4bit", "--bnb_4bit_quant_storage_dtype", "bfloat16", "--gradient_checkpointing"],
    "eight": ["--load_in_8bit"],
}
LORA = {"peft_type": "LORA", "r": 4, "target_modules": "all-linear", "lora_dropout": 0.0}
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("base"), small_tokenizer())


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"abc {n} de", "output": f"ij {n % 7}"} for n in range(40)]
    Path("rows.json").write_text(json.dumps(rows))


def _sft(model, out, *flags):
    return main(["sft", "--model", str(model), "--data", "rows.json", "--output_dir", out, *FLAGS.split(), *flags])


def _adapter(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def _opened(model, **settings):
    return load_model(str(model), QuantisationSettings(**settings))


def _adapted(model, **settings):
    opened = _opened(model, **settings)
    adapted = attach_adapter(opened, LORA, str(model), seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return adapted.train()


def _gradients(adapted):
    adapted.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        adapted(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
    return {name: one.grad.clone() for name, one in adapted.named_parameters() if one.requires_grad}


def _same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("bits", BITS)
def test_an_adapter_learns_and_goes_on_where_it_was(bits, model, capsys):
    assert _sft(model, "whole", *BITS[bits]) == 0
    losses = [line["eval_loss"] for line in read_log_lines(Path("whole/log.jsonl")) if "eval_loss" in line]
    assert losses[-1] < losses[0]
    assert _sft(model, "halves", *BITS[bits]) == 0
    for folder in ("final", "step_000006"):
        for path in sorted(Path("halves", folder).iterdir()):
            path.unlink()
        Path("halves", folder).rmdir()
    assert _sft(model, "halves", *BITS[bits], "--resume") == 0
    _same(_adapter("whole/final"), _adapter("halves/final"))
    assert set(_adapter("whole/final")) == {name for name in _adapter("whole/final") if ".lora_" in name}


def test_plain_peft_opens_it_on_the_quantised_and_on_the_full_base(model, capsys):
    assert _sft(model, "run", *FOUR, "--lora_dropout", "0") == 0
    settings = yaml.safe_load(Path("run/run.yaml").read_text())
    assert settings["bnb_4bit_compute_dtype"] == "bfloat16"
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    ours = attach_adapter(
        _opened(model, use_4bit_quantization=True, bnb_4bit_compute_dtype="bfloat16"), "run/final", str(model), seed=0
    )
    load_adapter_weights(ours, "run/final")
    with quiet_peft(), torch.no_grad():
        base = AutoModelForCausalLM.from_pretrained(model, quantization_config=config, dtype=torch.float32)
        theirs = PeftModel.from_pretrained(base, "run/final").train()  # in eval another kernel multiplies
        assert torch.equal(theirs(IDS).logits, ours.train()(IDS).logits)
        full = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), "run/final")
        torch.testing.assert_close(full(IDS).logits, load_model("run/final").eval()(IDS).logits)


@pytest.mark.parametrize("bits", [4, 8])
def test_only_the_adapter_moves_and_measuring_changes_nothing(bits, model):
    four = {"bnb_4bit_compute_dtype": "bfloat16"} if bits == 4 else {}
    adapted = _adapted(model, **{f"use_{bits}bit_quantization": True}, **four)
    layers = [module for module in adapted.modules() if is_quantised(module)]
    assert len(layers) == 14
    before = {n: p.detach().clone() for n, p in adapted.named_parameters() if not p.requires_grad}
    first = _gradients(adapted)
    with torch.no_grad():
        adapted.eval()(IDS)
    _same(first, _gradients(adapted.train()))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    optimizer.step()
    _same(before, {n: p.detach() for n, p in adapted.named_parameters() if not p.requires_grad})
    with torch.no_grad():
        adapted.eval()(IDS)
    _same(before, {n: p.detach() for n, p in adapted.named_parameters() if not p.requires_grad})


def test_recomputed_blocks_give_the_same_gradients(model):
    adapted = _adapted(model, use_4bit_quantization=True, bnb_4bit_compute_dtype="bfloat16")
    kept = _gradients(adapted)
    checkpoint_blocks(adapted)
    _same(kept, _gradients(adapted))


REFUSED = {
    "no_adapter": (FOUR, "--use_4bit_quantization needs an adapter"),
    "both": ([*FOUR, "--load_in_8bit", "--lora_r", "4"], "4 or 8 bits"),
    "nothing_to_nest": (["--use_nested_quant", "--lora_r", "4"], "--use_nested_quant"),
    "pure_bf16": ([*FOUR, "--lora_r", "4", "--pure_bf16"], "--pure_bf16"),
    "factored": ([*FOUR, "--lora_r", "4", "--loro_scope", "all"], "full-rank"),
    "method": ([*FOUR, "--adapter", "lokr_rank8"], "LOKR"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused(case, model, capsys):
    flags, said = REFUSED[case]
    assert main(["sft", "--model", str(model), "--data", "rows.json", "--output_dir", "run", *flags]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert said in line
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("kind", "said"), [("t5", "is a T5"), ("adapter_llama", "--merge"), ("low_rank_llama", "full-rank")]
)
def test_other_models_are_refused(kind, said, tmp_path, capsys):
    folder = write_model(kind, tmp_path / kind, small_tokenizer())
    assert (
        main(["sft", "--model", str(folder), "--data", "rows.json", "--output_dir", "run", "--lora_r", "4", *FOUR]) == 2
    )
    assert said in capsys.readouterr().err
    assert not Path("run").exists()
