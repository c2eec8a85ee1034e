"""`kill -9` at any moment, `--resume`, and the weights are bit for bit those of a run that nobody disturbed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from fivefold.cli import main

FIVEFOLD = [sys.executable, "-m", "fivefold"]
KILLS, KILLS_WHILE_WRITING = 10, 4
STEPS, SAVE_EVERY = 240, 8


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    """Flags of a small run with dropout on text that is read and tokenised as it goes, or prepared before."""
    folder = tmp_path_factory.mktemp("data")
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 7))) for _ in range(300)]
    lines = [" ".join(words.choices(vocabulary, k=words.randint(3, 60))) for _ in range(800)]
    (folder / "text.txt").write_text("\n".join(lines))
    data = ["--data", str(folder / "text.txt")]
    tokenizer, tokens = str(folder / "tokenizer"), str(folder / "tokens")
    for words_of_command in (
        ["tokenizer", *data, "--vocab_size", "500", "--max_length", "64", "--output_dir", tokenizer],
        ["prepare", *data, "--tokenizer", tokenizer, "--output_dir", tokens, "--validation_frac", "0.05"],
    ):
        subprocess.run([*FIVEFOLD, *words_of_command], check=True, timeout=300)
    shape = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 512}
    (folder / "model.json").write_text(json.dumps(shape | {"dropout_rate": 0.1}))
    common = ["--model_config", str(folder / "model.json"), "--input_length", "64", "--batch_size", "4"]
    common += ["--accumulation_steps", "2", "--num_training_steps", str(STEPS), "--save_every", str(SAVE_EVERY)]
    common += ["--eval_every", "80", "--log_every", "1", "--scheduler", "wsd"]
    loro = ["--optimizer", "loro_adamw", "--loro_freq", "5", "--loro_refresh", "all", "--loro_refresh_freq", "5"]
    loro += ["--loro_scope", "all", "--loro_attn_rank", "16", "--loro_mlp_rank", "24", "--loro_momentum", "tangent"]
    return {
        "prepared": ["pretrain", "--data", tokens, *common],
        "stream": ["pretrain", *data, "--tokenizer", tokenizer, "--validation_frac", "0.05", *common],
        "low_rank": ["pretrain", "--data", tokens, *common, *loro],
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills", "while_writing"),
    [("prepared", KILLS, KILLS_WHILE_WRITING), ("stream", 3, 1), ("low_rank", 3, 1)],
)
def test_killed_runs_end_with_the_weights_of_the_undisturbed_one(flags, kind, kills, while_writing, tmp_path):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run([*FIVEFOLD, *flags[kind], "--output_dir", str(undisturbed)], check=True, timeout=600)

    clock = random.Random(2)
    done = {"training": 0, "writing": 0}
    while sum(done.values()) < kills:
        wanted = "writing" if done["writing"] < while_writing else "training"
        if _run_and_kill([*flags[kind], "--output_dir", str(killed)], killed, wanted, clock):
            done[wanted] += 1
    subprocess.run([*FIVEFOLD, *flags[kind], "--output_dir", str(killed), "--resume"], check=True, timeout=600)

    (name,) = (path.name for path in (undisturbed / "final").glob("*.safetensors"))
    expected, got = (load_file(run / "final" / name) for run in (undisturbed, killed))
    assert set(got) == set(expected)
    for name, weight in expected.items():
        assert weight.equal(got[name]), f"{name} differs after {done}"
    assert _without_timings(killed / "log.jsonl") == _without_timings(undisturbed / "log.jsonl")


THIN = {"loro_scope": "all", "loro_attn_rank": 8, "loro_mlp_rank": 12}
CYCLE = {"loro_freq": 5, "loro_refresh": "all", "loro_refresh_freq": 5}


@pytest.mark.parametrize(
    "flags",
    [
        {"optimizer": "loro_adamw", "loro_momentum": "factor"} | THIN | CYCLE,
        {"optimizer": "loro_adamw", "loro_momentum": "tangent"} | THIN | CYCLE,
        {"optimizer": "loro_muon"} | THIN,
        {"packing": True, "objective": "ul2", "input_length": 128, "batch_size": 2},
    ],
    ids=["factor", "tangent", "muon", "packed"],
)
def test_stopped_after_a_checkpoint(flags, small_run, tmp_path):
    """As if killed after the checkpoint at 7: LORO's exact steps and refreshes are due at 5 and 10."""
    flags |= {"save_every": 7, "num_training_steps": 12}
    undisturbed, stopped = tmp_path / "undisturbed", tmp_path / "stopped"
    assert main(small_run.pretrain(**flags, output_dir=undisturbed)) == 0
    shutil.copytree(undisturbed, stopped, symlinks=True)
    for later in ("step_000012", "final"):
        shutil.rmtree(stopped / later)
    assert main(small_run.pretrain(**flags, output_dir=stopped, resume=True)) == 0
    (weights,) = (path.name for path in (undisturbed / "final").glob("*.safetensors"))
    for folder in ("step_000012", "final"):
        expected, got = ((run / folder / weights).read_bytes() for run in (undisturbed, stopped))
        assert got == expected
    log = _without_timings(stopped / "log.jsonl")
    assert log == _without_timings(undisturbed / "log.jsonl")
    for side in ("input", "target"):
        fracs = [line[f"{side}_nonpadding_frac"] for line in log if "loss" in line]
        assert min(fracs) > 0.5
        assert max(fracs) <= 1


def _run_and_kill(flags, run_dir, wanted, clock):
    """Start or go on with the run and kill it at a drawn moment; whether the moment was one of the wanted kind."""
    resume = ["--resume"] if run_dir.is_dir() else []
    log = run_dir / "log.jsonl"
    before = log.stat().st_size if log.is_file() else 0
    process = subprocess.Popen([*FIVEFOLD, *flags, *resume], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        # The resumed log is first cut back, then grows: any change means that training goes on.
        _wait_until(lambda: log.is_file() and log.stat().st_size not in (0, before), process)
        time.sleep(clock.uniform(0.0, 0.25))
        if wanted == "writing":
            _wait_until(lambda: any(run_dir.glob(".writing-step_*")), process)
            time.sleep(clock.uniform(0.0, 0.004))
    finally:
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "the run ended before its kill; give it more steps"
    # A folder left half-written proves that the kill came while one was being written.
    return wanted == "training" or any(run_dir.glob(".writing-step_*"))


def _wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def _without_timings(log):
    timings = ("tokens_per_second", "seconds", "memory_bytes")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timings} for line in lines]
