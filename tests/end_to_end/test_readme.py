"""Every command of the README, in its order, as a newcomer would type it - only the long training is cut short."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from wiki_dump import articles, with_others, write_dump

ROOT = Path(__file__).parents[2]
PROGRAMS = {"fivefold": ["-m", "fivefold"], "torchrun": ["-m", "torch.distributed.run"]}
# What makes the demo's training long, and what it is here.
SHORTER = {"--num_training_steps": "8", "--eval_every": "4", "--save_every": "4"}


def _commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def test_make_knows_its_targets():
    targets = [shlex.split(command)[1] for command in _commands() if command.startswith("make ")]
    assert targets == ["demo", "test"]  # the demo's own commands run below, this test is part of the other
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, check=True, capture_output=True)


def _run(commands: list[str]) -> None:
    for command in commands:
        words = shlex.split(command)
        words = [SHORTER.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        done = subprocess.run(
            [sys.executable, *PROGRAMS[words[0]], *words[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_every_command_runs(corpus_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    pairs = [{"prompt": f"第{n}个问题是什么？", "response": f"是{n}。"} for n in range(200)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(pair, ensure_ascii=False) for pair in pairs))
    write_dump(tmp_path / "wiki.xml.bz2", with_others(articles(60)))
    commands = [command for command in _commands() if not command.startswith("make ")]
    assert len(commands) >= 8
    _run(commands)
    assert (tmp_path / "demo" / "run" / "report.html").is_file()
    assert (tmp_path / "demo" / "two" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_way_to_a_chat_is_the_same_in_english(corpus_cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = ("tokenizer", "prepare --data zh_reviews", "pretrain --data demo/tokens --model_config modern")
    steps += ("sft", "rejected", "dpo", "chat", "report demo/dpo")
    ours = [command for command in _commands() if command.startswith(tuple(f"fivefold {step}" for step in steps))]
    assert len(ours) == len(steps)
    commands = [command.replace("zh_reviews", "en_plays").replace("zh_", "en_") for command in ours]
    _run(commands)
    assert (tmp_path / "demo" / "dpo" / "report.html").is_file()
