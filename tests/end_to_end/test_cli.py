"""The program as a user meets it: quick to answer, honest before it starts, polite when it is stopped."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from fivefold import __version__
from fivefold.cli import VERBS, main
from fivefold.commands import pretrain
from fivefold.data.batch_plan import plan_batches
from fivefold.flags import as_recipe, parse
from fivefold.t5.fill_blanks import has_blanks

FIVEFOLD = [sys.executable, "-m", "fivefold"]
HEAVY = ("torch", "transformers", "datasets", "tokenizers", "pyarrow", "matplotlib", "tensorboard")
# Takes 0.1 s on an idle machine; the best of three leaves room for a machine that does other things besides.
MAX_HELP_SECONDS = 0.5


def test_help_comes_at_once():
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([*FIVEFOLD, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert all(f"  {verb} " in done.stdout and summary in done.stdout for verb, summary in VERBS.items())
    assert min(seconds) < MAX_HELP_SECONDS


def test_no_help_and_no_mistake_waits_for_a_heavy_import():
    program = (
        "import sys; from fivefold.cli import VERBS, main\n"
        "codes = [main(['--help']), main(['--version']), *(main([*verb.split(), '--help']) for verb in VERBS)]\n"
        "assert codes == [0] * len(codes), codes\n"
        "assert main(['pretrain', '--dat', 'x']) == main(['pretrain', '--data', 'x', '--batch_size', '0']) == 2\n"
        f"print('imported', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "imported []"


def test_every_verb_explains_its_flags(capsys):
    for verb in VERBS:
        assert main([*verb.split(), "--help"]) == 0
        help_text = capsys.readouterr().out
        assert help_text.startswith(f"usage: fivefold {verb} ")
        assert "--dry_run" in help_text
    assert main([]) == main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.endswith(f"fivefold {__version__}\n")


def listing(folder: Path) -> list[Path]:
    """Everything in a folder."""
    return sorted(folder.rglob("*"))


def test_dry_run_says_everything_and_writes_nothing(small_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = listing(small_run.folder)
    words = small_run.pretrain(output_dir="out", batch_size=6, accumulation_steps=3, dry_run=True)
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert listing(tmp_path) == []
    assert listing(small_run.folder) == before

    weights = torch.load(small_run.run / "last" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    trained = sum(state["exp_avg"].numel() for state in weights.values())
    assert f"{trained:,}, of which {trained:,} train" in printed
    assert re.search(r"memory +0\.\d\d GiB: weights 0\.00, .*, kept for the backward pass 0\.\d\d", printed)
    assert "18 samples a step: 6 at once x 3 accumulated x 1 processes" in printed

    (line,) = re.findall(r"torchrun --nproc_per_node 2 -m fivefold pretrain (.+)", printed)
    alone = parse("pretrain", pretrain.run, words[1:]).settings
    shared = parse("pretrain", pretrain.run, shlex.split(line)).settings
    settled = as_recipe(shared.values())  # defaults that depend on the model are written out
    changed = {name for name, value in as_recipe(alone.values()).items() if value not in (None, settled[name])}
    assert changed == {"batch_size", "accumulation_steps"}
    assert plan_batches(shared["batch"], 2).global_batch_size == plan_batches(alone["batch"], 1).global_batch_size


def test_a_dry_run_holds_no_large_model_in_memory(small_run, tmp_path, capsys):
    words = small_run.pretrain(model_config="xxl", dtype="bfloat16", output_dir=tmp_path / "out", dry_run=True)
    assert main(words) == 0  # 41 GiB of weights
    printed = capsys.readouterr().out
    parameters = int(re.findall(r"parameters +([\d,]+),", printed)[0].replace(",", ""))
    (line,) = re.findall(r"weights ([\d.]+), gradients ([\d.]+), optimizer ([\d.]+), kept .* ([\d.]+)", printed)
    *held, kept = map(float, line)
    assert 1e10 < parameters < 1.2e10
    assert held == pytest.approx([parameters * size / 2**30 for size in (4, 4, 8)], abs=0.01)  # two moments
    assert kept > parameters * 2 / 2**30 * 0.99  # the matrices in bfloat16 among it; the table of tokens is small here


def test_a_dry_run_says_what_would_stop_the_run(small_run, tmp_path, capsys):
    assert main(small_run.pretrain(dry_run=True)) == 0
    assert "would stop " in capsys.readouterr().out
    assert main(small_run.pretrain(resume=True, dry_run=True)) == 0
    assert "would stop " not in capsys.readouterr().out
    assert main(small_run.pretrain(output_dir=tmp_path / "out", resume=True, dry_run=True)) == 0
    assert "there is no run in" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["tokenizer", "--data", "TEXT", "--vocab_size", "500", "--output_dir", "out"],
        ["prepare", "--data", "TEXT", "--tokenizer", "TOKENIZER", "--output_dir", "out"],
        ["generate", "--model", "MODEL", "--text", "abc", "--output_file", "out"],
        ["report", "RUN", "--output_dir", "out"],
    ],
)
def test_dry_runs_of_the_other_verbs(words, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = listing(small_run.folder)
    names = {"TEXT": small_run.text, "TOKENIZER": small_run.tokenizer, "RUN": small_run.run}
    names["MODEL"] = small_run.run / "final"
    assert main([*(str(names.get(word, word)) for word in words), "--dry_run"]) == 0
    assert listing(tmp_path) == []
    assert listing(small_run.folder) == before


def test_print_config_is_a_recipe_of_the_same_run(small_run, tmp_path, capsys):
    words = small_run.pretrain(output_dir=tmp_path / "out", lr=5e-4, dtype="bf16", use_wandb="false")
    assert main([*words, "--print_config"]) == 0
    recipe = tmp_path / "run.yaml"
    recipe.write_text(capsys.readouterr().out)
    assert listing(tmp_path) == [recipe]
    from_flags, from_recipe = (
        parse("pretrain", pretrain.run, given).settings for given in (words[1:], ["--recipe", str(recipe)])
    )
    assert from_recipe == from_flags
    printed = []
    for given in (words, ["pretrain", "--recipe", str(recipe)]):
        assert main([*given, "--dry_run"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]


def test_what_a_run_leaves_behind(small_run, capsys):
    run = small_run.run
    names = {path.name for path in run.iterdir() if path.suffix != ".png"}
    assert names == {
        *("run.yaml", "log.jsonl", "hardware.json", "tensorboard", "report.html"),
        *("step_000006", "step_000008", "last", "best", "final"),
    }
    settings = yaml.safe_load((run / "run.yaml").read_text())
    assert settings["num_training_steps"] == 8
    assert settings == as_recipe(parse("pretrain", pretrain.run, ["--recipe", str(run / "run.yaml")]).settings.values())
    assert str((run / "last").readlink()) == "step_000008"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 4, 8]
    assert main(["report", str(run)]) == 0
    assert "held-out loss" in capsys.readouterr().out


def test_terminated_runs_write_a_checkpoint_and_go_on(small_run, tmp_path):
    stopped, undisturbed = tmp_path / "stopped", tmp_path / "undisturbed"
    length = {"num_training_steps": 200, "save_every": 0, "eval_every": 0}
    words = small_run.pretrain(output_dir=stopped, **length)
    # As many threads as this process has: sums of floats depend on it.
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([*FIVEFOLD, *words], stderr=subprocess.PIPE, text=True, env=environment)
    try:
        log = stopped / "log.jsonl"
        while not (log.is_file() and log.stat().st_size) and process.poll() is None:
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    (said,) = re.findall(r"fivefold pretrain: stopped after step (\d+) of 200; --resume goes on from there\.", stderr)
    assert "Traceback" not in stderr
    assert [path.name for path in stopped.glob("step_*")] == [f"step_{int(said):06d}"]
    assert not (stopped / "final").exists()

    assert main([*words, "--resume"]) == 0
    assert main(small_run.pretrain(output_dir=undisturbed, **length)) == 0
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (stopped, undisturbed)]
    assert weights[0] == weights[1]


def test_generate_text_and_blanks(small_run, tmp_path, capsys, monkeypatch):
    model = str(small_run.run / "final")
    texts = ["abc def", "ab ___ cd ___ ef", "___"]
    (tmp_path / "inputs.txt").write_text("\n".join(texts) + "\n")
    words = ["generate", "--model", model, "--input_file", str(tmp_path / "inputs.txt"), "--max_new_tokens", "12"]
    output_file = tmp_path / "out.jsonl"
    assert main([*words, "--output_file", str(output_file)]) == 0
    assert capsys.readouterr().out == ""
    results = [json.loads(line) for line in output_file.read_text().splitlines()]
    assert [result["input"] for result in results] == texts
    assert [len(result.get("blanks", [])) > 0 for result in results] == [False, True, True]
    for result in results[1:]:
        assert len(result["blanks"]) <= result["input"].count("___")
        before, *_ = result["input"].split("___")
        assert result["output"].startswith(before)
    assert not has_blanks(results[2]["output"])

    assert main(["generate", "--model", model, "--max_new_tokens", "12", "--text", *texts]) == 0
    printed = capsys.readouterr().out
    assert printed == "".join(result["output"] + "\n" for result in results)
    # One at a time, where nothing is padded, and from standard input: the same.
    monkeypatch.setattr("sys.stdin", (tmp_path / "inputs.txt").open())
    assert main(["generate", "--model", model, "--max_new_tokens", "12", "--batch_size", "1"]) == 0
    sys.stdin.close()
    assert capsys.readouterr().out == printed


def test_sampling_follows_from_the_seed(small_run, capsys):
    words = ["generate", "--model", str(small_run.run / "final"), "--text", "ab ___", "--do_sample", "--seed"]
    printed = []
    for seed in ("1", "1", "2"):
        assert main([*words, seed]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] != printed[2]


def test_going_on_from_a_trained_model(small_run, tmp_path, capsys):
    final = small_run.run / "final"
    out = tmp_path / "out"
    words = small_run.pretrain(model=final, model_config=None, output_dir=out, num_training_steps=2)
    assert main(words) == 0
    assert f"model   {out / 'final'}" in capsys.readouterr().out
    before, after = (
        [json.loads(line)["eval_loss"] for line in (run / "log.jsonl").read_text().splitlines() if "eval_loss" in line]
        for run in (small_run.run, out)
    )
    assert after[0] == before[-1]  # the weights it begins with are those that the other run ended with
