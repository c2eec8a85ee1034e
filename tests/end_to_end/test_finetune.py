"""docs/coming_from/peft_examples.md on a small LLaMA: the plan, the command that it prints, and what that trains."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import yaml
from chat_models import small_tokenizer, write_model
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.cli import main
from fivefold.models.load import load_model
from fivefold.training.telemetry import read_log_lines

PAGE = (Path(__file__).parents[2] / "docs" / "coming_from" / "peft_examples.md").read_text(encoding="utf-8")
PLAN, EXECUTE, SFT = (shlex.split(line)[2:] for block in re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)
                      for line in block.splitlines())  # fmt: skip
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "bias": "none"}
LORA |= {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
SMALL = [
    "--input_length",
    "64",
    "--validation_frac",
    "0.2",
    "--samples",
    "1",
    "--sample_tokens",
    "2",
    "--dtype",
    "fp32",
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("base"), small_tokenizer())


@pytest.fixture
def place(model, tmp_path, monkeypatch):
    """A folder with the page's data and configuration, in which words of its lines lead to what is there."""
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"abc {n} de", "input": "gh" * (n % 3), "output": f"ij {n % 7}"} for n in range(40)]
    (tmp_path / "yahma.json").write_text(json.dumps(rows))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "lora_llama2_7b_rank4.json").write_text(json.dumps(LORA | {"inference_mode": True}))
    there = {"/path/to/Llama-2-7b-hf/": str(model), "yahma/alpaca-cleaned": "yahma.json"}
    return lambda words: [there.get(word, word) for word in words]


def _weights(run):
    return load_file(Path(run) / "final" / "adapter_model.safetensors")


def _printed(capsys, start):
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(start)]
    return line.removeprefix(start).strip()


def test_the_plan_is_told_and_its_command_trains_what_execute_trains(place, tmp_path, capsys):
    assert main([*place(PLAN), *SMALL]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^parameters     [\d,]+, of which 4,352 train$", printed, flags=re.MULTILINE)
    rows = int(re.search(r"^data           (\d+) rows of \1 conversations, \d+ tokens, ", printed, re.MULTILINE)[1])
    steps = int(re.search(rf"^steps          (\d+), {rows} samples a pass$", printed, re.MULTILINE)[1])
    assert steps == round(3 * rows / 8)
    assert "torchrun --nproc_per_node 2 -m fivefold sft --model_type llama --model " in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config", "yahma.json"]
    (line,) = re.findall(r"^one process    fivefold (.*)$", printed, flags=re.MULTILINE)
    assert main([*place(EXECUTE), *SMALL]) == 0
    out = EXECUTE[EXECUTE.index("--output_dir") + 1]
    assert main([*shlex.split(line), "--output_dir", out]) == 2  # the run is there already
    executed = _weights(out)
    assert read_log_lines(Path(out) / "log.jsonl")[-1]["step"] == steps
    Path(out).rename("executed")
    assert main(shlex.split(line)) == 0
    printed_run = _weights(out)
    assert executed.keys() == printed_run.keys()
    assert all(torch.equal(weight, printed_run[name]) for name, weight in executed.items())
    assert yaml.safe_load(Path("executed/run.yaml").read_text()) == yaml.safe_load(Path(out, "run.yaml").read_text())


def test_the_second_command_runs_and_peft_opens_what_it_trained(place, model, capsys):
    words = [*place(SFT), "--dtype", "bfloat16", "--samples", "1", "--sample_tokens", "2"]
    assert main(words) == 0
    out = Path(SFT[SFT.index("--output_dir") + 1])
    settings = yaml.safe_load((out / "run.yaml").read_text())
    assert {name: settings[name] for name in ("min_lr_ratio", "warmup_ratio", "eval_every", "save_strategy")} == {
        "min_lr_ratio": 0.0,
        "warmup_ratio": 0.03,
        "eval_every": 0,
        "save_strategy": "epoch",
    }
    steps = [int(path.name[5:]) for path in sorted(out.glob("step_*"))]
    last = [line for line in read_log_lines(out / "log.jsonl") if "learning_rate" in line][-1]
    assert steps[-1] == last["step"]
    assert all(step % 3 == 0 for step in steps[:-1])  # at most 40 rows, 16 a step
    assert last["learning_rate"] == pytest.approx(0, abs=1e-12)
    lora = json.loads((out / "final" / "adapter_config.json").read_text())
    assert {name: lora[name] for name in ("r", "lora_alpha", "lora_dropout")} == {
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.1,
    }
    assert sorted(lora["target_modules"]) == sorted(LORA["target_modules"])
    ids = torch.arange(5, 25)[None]
    with quiet_peft(), torch.no_grad():
        theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), out / "final")
        torch.testing.assert_close(theirs(ids).logits, load_model(str(out / "final")).eval()(ids).logits)


def test_the_best_checkpoint_becomes_the_final_model(place, capsys):
    words = place(["sft", "--model", "/path/to/Llama-2-7b-hf/", "--data", "yahma.json", "--lora_r", "2", "--lr", "20"])
    line = "--scheduler constant --epochs 4 --eval_strategy epoch --save_strategy epoch --load_best_model_at_end"
    assert main([*words, *line.split(), *SMALL, "--warmup_ratio", "0", "--output_dir", "run"]) == 0
    best, final = Path("run/best"), Path("run/final")
    losses = {line["step"]: line["eval_loss"] for line in read_log_lines(Path("run/log.jsonl")) if "eval_loss" in line}
    measured = {step: loss for step, loss in losses.items() if step}
    assert len(measured) == 4
    step = json.loads((final / "loop.json").read_text())["step"]
    assert measured[step] == min(measured.values())
    weights = _weights("run")
    assert all(torch.equal(weight, weights[n]) for n, weight in load_file(best / "adapter_model.safetensors").items())
    assert step < max(measured)  # at such a rate it only gets worse


def test_plain_text_trains_a_decoder(place, capsys):
    Path("text.jsonl").write_text("".join(json.dumps({"body": f"abc de {n}"}) + "\n" for n in range(40)))
    words = place(["sft", "--model", "/path/to/Llama-2-7b-hf/", "--data", "text.jsonl", "--dataset_text_field", "body"])
    assert (
        main([*words, *SMALL, "--packing", "--lora_r", "2", "--epochs", "2", "--lr", "1e-2", "--output_dir", "run"])
        == 0
    )
    losses = [line["eval_loss"] for line in read_log_lines(Path("run/log.jsonl")) if "eval_loss" in line]
    assert losses[-1] < losses[0]


BAD = {
    "misspelt": ({"lora_alhpa": 8}, "did you mean lora_alpha"),
    "other_model": ({"task_type": "SEQ_2_SEQ_LM"}, "has the task_type 'SEQ_2_SEQ_LM', but the model's is CAUSAL_LM"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_told_before_the_model_is_opened(name, place, tmp_path, monkeypatch, capsys):
    changes, sentence = BAD[name]
    (tmp_path / "config" / "lora_llama2_7b_rank4.json").write_text(json.dumps(LORA | changes))
    monkeypatch.setattr("fivefold.models.build.load_model", lambda *name: pytest.fail("opened"))
    assert main(place(PLAN)) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--splits", "train,test"], "--data yahma.json has no splits such as test; name files for each use"),
        (["--data_split", "test"], "has no splits such as test"),
        (["--data", "rows.json"], "the columns 'q', 'a' are no conversation; expected messages"),
        (["--optimizer", "loro_muon"], "which an adapter leaves alone"),
        (["--load_best_model_at_end", "--eval_strategy", "no"], "but not all are measured"),
        (["--warmup_steps", "10000"], "longer than the run of"),
    ],
)
def test_what_cannot_be_is_refused_in_the_plan(flags, sentence, place, capsys):
    Path("rows.json").write_text(json.dumps([{"q": "x", "a": "y"}]))
    plan = place(PLAN)
    if "--data" in flags:
        plan = [word for word in plan if word not in ("--dataset_name", "yahma.json")]
    assert main([*plan, *flags]) == 2
    assert sentence in capsys.readouterr().err
