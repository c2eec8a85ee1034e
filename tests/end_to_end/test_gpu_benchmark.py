"""The benchmarks for GPUs, tried out on the CPU: what they compute is checked, what they measure here means nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _run(name: str, *words: str, **environment: str) -> str:
    command = [sys.executable, "-W", "ignore", str(BENCHMARKS / name), "--device", "cpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_training_is_checked_and_measured_four_ways():
    words = "--size tiny --lengths 32 --tokens 64 --steps 2 --rounds 1 --backend aot_eager --peak_tflops 1 --check"
    printed = _run("gpu_t5_training.py", *words.split()).splitlines()
    assert not [line for line in printed if line.startswith("WRONG")]
    assert len([line for line in printed if line.startswith("ok ")]) >= 14
    rows = [line.split(" | ") for line in printed if line.startswith("| 32 / 7")]
    assert [row[2] for row in rows] == ["transformers", "transformers, compiled", "fivefold", "fivefold, compiled"]
    for row in rows:
        assert float(row[4].replace(",", "")) > 0
        assert row[5].endswith("%")
    same = [row[7] for row in rows]
    assert same[0] == same[1]
    assert same[2] == same[3]


def test_attention_is_measured_and_tuned():
    words = ["--lengths", "32", "--tokens", "32", "--heads", "2", "--head_dim", "16"]
    assert _run("gpu_attention.py", *words, TRITON_INTERPRET="1").count("| 32 |") == 3
    printed = _run("gpu_attention.py", *words, "--tune", TRITON_INTERPRET="1")
    assert printed.count(" ms") == 6
    assert "no: " not in printed


def test_flops_are_those_that_torch_counts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu_t5_training import config_of, step_flops

    config = config_of("tiny")
    fields = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj")
    theirs = transformers.T5Config(**{name: getattr(config, name) for name in fields}, decoder_start_token_id=0)
    theirs._attn_implementation = "eager"  # every product for itself
    model = transformers.T5ForConditionalGeneration(theirs)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(3, 32, dtype=torch.long), labels=torch.zeros(3, 7, dtype=torch.long))
    assert step_flops(config, 3, 32, 7) == 3 * counter.get_total_flops()
