"""The document's command on models that somebody trained, with real instructions: it learns, and others open it."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, T5ForConditionalGeneration

from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.cli import main
from fivefold.lowrank.store import is_factored, load_factored
from fivefold.models.load import load_model
from fivefold.training.telemetry import read_log_lines

pytestmark = pytest.mark.slow

# As peft itself leaves such files behind; the document's own says the same.
DOCUMENT = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": 4,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "lora_alpha": 8,
    "lora_dropout": 0.1,
    "bias": "none",
    "inference_mode": True,
}
# Five minutes would do it on two cores with nothing said; these keep it to one, at the customary rate or what is short.
SHORT = ["--input_length", "256", "--packing", "--batch_size", "4", "--num_training_steps", "24", "--eval_every", "12"]
SHORT += ["--eval_samples", "24", "--validation_frac", "0.1", "--samples", "1", "--sample_tokens", "8", "--lr", "1e-3"]
SHORT += ["--log_every", "1"]


class LowRank:
    """Opens low-rank folders as the library opens its own."""

    @staticmethod
    def from_pretrained(folder, **_):
        return load_factored(str(folder))


@pytest.fixture
def demo(monkeypatch):
    """examples/demo.py, which pretrains for a third of its steps."""
    spec = importlib.util.spec_from_file_location("demo", Path(__file__).parents[2] / "examples" / "demo.py")
    demo = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(demo)
    whole = demo.run
    monkeypatch.setattr(
        demo, "run", lambda line: whole(line.replace("--num_training_steps 300", "--num_training_steps 100"))
    )
    return demo


@pytest.fixture
def place(corpus_cache, tmp_path, monkeypatch):
    """A folder with the instructions as alpaca's file has them, and the document's JSON."""
    from fivefold.corpus.settings import CorpusSettings
    from fivefold.data.conversations import open_conversations

    talks = [record["messages"] for record in open_conversations(CorpusSettings(["en_instructions"]))]
    rows = [{"instruction": asked["content"], "input": "", "output": said["content"]} for asked, said in talks]
    monkeypatch.chdir(tmp_path)
    Path("alpaca.json").write_text(json.dumps(rows))
    Path("config").mkdir()
    Path("config/lora_llama2_7b_rank4.json").write_text(json.dumps(DOCUMENT))
    return tmp_path


def _finetune(model, config, *more):
    words = ["finetune", "--model_path", str(model), "--dataset_name", "alpaca.json", "--config", str(config)]
    return [*words, "--output_dir", "checkpoints/run", *SHORT, *more]


def _learned(run):
    """That the loss fell, on what is learned and on what is held out."""
    log = read_log_lines(run / "log.jsonl")
    losses = [line["loss"] for line in log if "loss" in line]
    assert sum(losses[12:]) < sum(losses[:12])
    held_out = [line["eval_loss"] for line in log if "eval_loss" in line]
    print(f"held out: {held_out[0]:.3f} of the base, {held_out[-1]:.3f} with the adapter")
    assert held_out[-1] < held_out[0]


def _logits(model, ids):
    inputs = {"input_ids": ids, **({"decoder_input_ids": ids[:, :8]} if model.config.is_encoder_decoder else {})}
    with torch.no_grad():
        return model.eval()(**inputs).logits.float()


def _is_the_same_everywhere(run, base, theirs, ids):
    """In plain peft on a model that `theirs` opens, and merged into a folder that it opens."""
    ours = load_model(str(run))
    with quiet_peft():
        opened = PeftModel.from_pretrained(theirs.from_pretrained(base, dtype=torch.float32), run)
        beside = PeftModel.from_pretrained(load_model(str(base)), run)
    torch.testing.assert_close(_logits(beside, ids), _logits(opened, ids), rtol=1e-5, atol=1e-4)
    assert main(["export", str(run), "--merge", "--output_dir", "merged"]) == 0
    merged = theirs.from_pretrained("merged", dtype=torch.float32)
    scale = float(_logits(opened, ids).abs().max())
    for model in (ours, merged):
        assert float((_logits(model, ids) - _logits(opened, ids)).abs().max()) < 1e-4 * scale
    assert float((_logits(load_model(str(base)), ids) - _logits(opened, ids)).abs().max()) > 1e-2 * scale


def test_smollm2_learns_by_the_document(real_smollm2, place, capsys):
    words = _finetune(real_smollm2, "config/lora_llama2_7b_rank4.json")
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^parameters     [\d,]+, of which 1,221,120 train$", printed, flags=re.MULTILINE)
    (line,) = re.findall(r"^one process    fivefold (.*)$", printed, flags=re.MULTILINE)
    assert not Path("checkpoints").exists()
    # As somebody would who copies the line.
    subprocess.run([sys.executable, "-m", "fivefold", *shlex.split(line)], check=True)
    run = place / "checkpoints" / "run"
    _learned(run)
    ids = AutoTokenizer.from_pretrained(real_smollm2)("Name three fruits and say why.", return_tensors="pt").input_ids
    _is_the_same_everywhere(run / "final", real_smollm2, AutoModelForCausalLM, ids)


def test_flan_t5_learns_by_a_preset(real_t5, place):
    words = _finetune(real_t5, "config/lora_rank8.json", "--target_length", "256", "--execute")
    assert main(words) == 0
    run = place / "checkpoints" / "run"
    _learned(run)
    ids = AutoTokenizer.from_pretrained(real_t5)("Name three fruits and say why.", return_tensors="pt").input_ids
    _is_the_same_everywhere(run / "final", real_t5, T5ForConditionalGeneration, ids)


def test_a_low_rank_t5_learns_after_its_pretraining(place, demo):
    reviews = place / "demo"
    demo.split_reviews(reviews, seed=0)
    demo.pretrain(reviews, seed=0)
    base = reviews / "run" / "final"
    words = ["finetune", "--model_path", str(base), "--dataset_name", str(reviews / "taught.jsonl"), *SHORT]
    words += ["--config", "lora_rank8", "--target_length", "48", "--output_dir", "checkpoints/run", "--execute"]
    assert main(words) == 0
    run = place / "checkpoints" / "run"
    _learned(run)
    ids = AutoTokenizer.from_pretrained(base)(demo.QUESTION + demo.SAID[0], return_tensors="pt").input_ids
    _is_the_same_everywhere(run / "final", base, LowRank, ids)
    assert is_factored("merged")
