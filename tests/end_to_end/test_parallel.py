"""`fivefold parallel`: learning, resuming, the two kinds of files, and what is refused."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from chat_models import small_tokenizer, write_model
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.branches.folder import stored_scheme
from fivefold.branches.model import branch_arguments, prepare_for_branches
from fivefold.branches.settings import BranchScheme
from fivefold.cli import main
from fivefold.models.load import load_model
from fivefold.training.telemetry import read_log_lines

FLAGS: dict[str, object] = {
    "data_path": "rows.jsonl",
    "batch_size": 4,
    "max_seq_len": 32,
    "validation_frac": 0.1,
    "learning_rate": 5e-3,
    "num_training_steps": 8,
    "eval_every": 4,
    "save_every": 4,
    "keep_last": 0,
}
WORDS = ("abc", "de", "fgh", "ij", "cab", "bad")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("base"), small_tokenizer())


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = []
    for n in range(80):
        main_text = [WORDS[n % 6], WORDS[n % 5], WORDS[n % 4]]
        rows.append(
            {"main": " ".join(main_text) + " ", "branches": [f"{k} {main_text[k % 3]}" for k in range(1 + n % 9)]}
        )
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    Path("texts.jsonl").write_text("\n".join(json.dumps({"text": row["main"]}) for row in rows))


def _parallel(model, out, *switches, verb=("parallel",), **changes):
    flags = FLAGS | ({"base_model": model, "lora_rank": 4} if model else {}) | {"out_dir": out} | changes
    return main([*verb, *switches, *(str(word) for name, value in flags.items() for word in (f"--{name}", value))])


def _adapter(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def _same(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize("flags", ["", "--use_streaming", "--no_patch_rope", "--branch_visibility columnar"])
def test_it_learns_and_goes_on_where_it_was(flags, model, capsys):
    assert _parallel(model, "whole", *flags.split()) == 0
    losses = [line["eval_loss"] for line in read_log_lines(Path("whole/log.jsonl")) if "eval_loss" in line]
    assert losses[-1] < losses[0]
    shutil.copytree("whole", "halves", symlinks=True)
    for name in ("final", "step_000008"):
        shutil.rmtree(f"halves/{name}")
    assert _parallel(model, "halves", *flags.split(), "--resume") == 0
    _same(_adapter("whole/final"), _adapter("halves/final"))


def test_two_processes_learn_what_one_does(model):
    """The same samples a step, each process half of them; float32, in sums of another order."""
    settings = {"dtype": "float32", "num_training_steps": 3, "eval_every": 0, "save_every": 0}
    assert _parallel(model, "one", **settings) == 0
    flags = FLAGS | settings | {"base_model": model, "lora_rank": 4, "out_dir": "two", "batch_size": 2}
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "fivefold",
    ]
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    subprocess.run([*launcher, "parallel", "--ddp", *words], check=True, timeout=300)
    one, two = _adapter("one/final"), _adapter("two/final")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


def test_plain_peft_opens_the_adapter(model):
    assert _parallel(model, "run", rope_2d_mode="offset") == 0
    scheme = stored_scheme("run/final")
    assert scheme == BranchScheme(0.5, "offset")
    base = AutoModelForCausalLM.from_pretrained(model)
    with quiet_peft():
        theirs = PeftModel.from_pretrained(base, "run/final").eval()
    ours = load_model("run/final").eval()
    for one in (theirs.get_base_model(), ours):
        prepare_for_branches(one, scheme)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    arguments = (torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 1, 2, 3, 2, 3]]), scheme)
    with torch.no_grad():
        expected = theirs(input_ids=ids, use_cache=False, **branch_arguments(theirs, *arguments)).logits
        torch.testing.assert_close(ours(ids, use_cache=False, **branch_arguments(ours, *arguments)).logits, expected)
        main_alone = base.eval()(input_ids=ids[:, :2]).logits
        torch.testing.assert_close(expected[:, :2], main_alone)


def test_single_texts_are_branches_of_nothing(model, caplog):
    assert _parallel(model, "run", data_path="texts.jsonl", max_branches_per_sample=5) == 0
    assert "single texts" in caplog.text


def test_files_of_the_older_kind_go_out_and_in(model, capsys):
    assert _parallel(model, "run", "--save_lora_files", lora_name="mine") == 0
    names = sorted(path.name for path in Path("run/lora").iterdir())
    assert names == ["mine_final.pth", "mine_step4.pth", "mine_step8.pth"]
    stored = torch.load("run/lora/mine_final.pth", weights_only=True)
    assert "model.layers.0.self_attn.q_proj.lora.A.weight" in stored
    frozen = {"learning_rate": 1e-30, "num_training_steps": 1, "eval_every": 1, "save_every": 0}
    assert _parallel(model, "file", load_lora="run/lora/mine_final.pth", **frozen) == 0
    assert _parallel(model, "folder", load_lora="run/final", **frozen) == 0
    for folder in ("file/final", "folder/final"):
        _same(_adapter("run/final"), _adapter(folder))
    assert _parallel(model, "other", load_lora="run/lora/mine_final.pth", lora_rank=2) == 2
    assert "is the LoRA of another model" in capsys.readouterr().err
    torch.save({"a": torch.ones(1)}, "broken.pth")
    assert _parallel(model, "other", load_lora="broken.pth") == 2
    assert "holds no LoRA that can be read" in capsys.readouterr().err


def test_all_weights_of_a_fresh_decoder(capsys):
    from fivefold.tokenizer.save import save_tokenizer

    save_tokenizer(small_tokenizer(), Path("tokenizer"))
    shape = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": 4, "vocab_size": 640, "max_position_embeddings": 128}
    Path("shape.json").write_text(json.dumps(shape))
    for out, *verb in (
        ("run", "parallel"),
        ("by_objective", "pretrain", "--objective", "parallel"),
        ("by_objective_too", "pretrain", "--objective=parallel"),
    ):
        fresh = {"model_config": "shape.json", "model_type": "llama", "tokenizer": "tokenizer"}
        assert _parallel(None, out, verb=verb, **fresh) == 0
        assert stored_scheme(f"{out}/final") == BranchScheme()
        _same(load_file(f"{out}/final/model.safetensors"), load_file("run/final/model.safetensors"))
    assert AutoModelForCausalLM.from_pretrained("run/final").config.model_type == "llama"


REFUSED = {
    "ratio": ({"rope_2d_ratio": 1}, "time would have no order"),
    "ratio_out_of_range": ({"rope_2d_ratio": 1.5}, "rope_2d_ratio is 1.5"),
    "stride": ({"stride": 0}, "stride is 0"),
    "unused": ({"patch_rope": False, "stride": 64}, "--stride would change nothing"),
    "no_data": ({"data_path": "nowhere.jsonl"}, "nowhere.jsonl"),
    "positions": ({"max_seq_len": 9999}, "positions"),
    "compile": ({"compile": True}, "--compile"),
    "name": ({"lora_name": "a/b"}, "lora_name is 'a/b'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_settings(case, model, capsys):
    changes, said = REFUSED[case]
    assert _parallel(model, "run", **changes) == 2
    assert said in capsys.readouterr().err
    assert not Path("run").exists()


def test_files_need_a_lora(model, capsys):
    words = [
        "--base_model",
        str(model),
        "--data_path",
        "rows.jsonl",
        "--use_peft_lora",
        "false",
        "--load_lora",
        "x.pth",
    ]
    assert main(["parallel", *words]) == 2
    assert "need a LoRA" in capsys.readouterr().err


def test_other_models_are_refused(tmp_path, capsys):
    t5 = write_model("t5", tmp_path / "t5", small_tokenizer())
    assert _parallel(t5, "run") == 2
    assert "Branches are for decoders" in capsys.readouterr().err


def test_an_adapter_of_another_scheme_is_refused(model, capsys):
    assert _parallel(model, "run") == 0
    capsys.readouterr()
    assert _parallel(model, "next", load_lora="run/final", rope_2d_ratio=0.25) == 2
    assert "was trained with rope_2d_ratio 0.5" in capsys.readouterr().err


DOCUMENT = (
    "--lora_rank 8 --rope_2d_ratio 0.5 --stride 128 --patch_rope --max_seq_len 512 --branches_per_sample 8"
    " --max_branches_per_sample 0 --batch_size 16 --epochs 3 --learning_rate 1e-4 --accumulation_steps 1"
    " --grad_clip 1.0 --dtype bfloat16 --out_dir out --log_interval 50 --save_interval 500 --ddp"
)


def test_the_documents_defaults_are_ours(model, capsys):
    shown = []
    for words in (f"{DOCUMENT} --tokenizer_path {model}", "--epochs 3"):
        assert (
            main(["parallel", "--base_model", str(model), "--data_path", "rows.jsonl", *words.split(), "--dry_run"])
            == 0
        )
        shown.append({line for line in capsys.readouterr().out.splitlines() if ": " in line})
    said_alone = ("tokenizer", "accumulation_steps", "one process", "two processes", "time", "memory")
    assert not [line for line in shown[0] ^ shown[1] if not line.startswith(said_alone)]


def _lines_of_the_document():
    page = Path(__file__).parents[2] / "docs" / "coming_from" / "parallel_decoding.md"
    (block,) = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line.removeprefix("$ ") for line in block.splitlines()]


@pytest.mark.parametrize("line", _lines_of_the_document())
def test_every_line_of_the_document_runs(line, model, capsys):
    """On a small model and few rows under the same names, in one process."""
    words = shlex.split(line.partition("fivefold ")[2])
    named = dict(pairwise(words))
    shutil.copytree(model, named["--base_model"])
    if "--data_path" in named:
        Path("dataset").mkdir()
        shutil.copy("rows.jsonl", named["--data_path"])
    else:
        Path(named["--hf_dataset"]).mkdir(parents=True)
        shutil.copy("texts.jsonl", named["--hf_dataset"])
    if "--use_wandb" in words:  # which wants an account
        words.remove("--use_wandb")
    short = {"--epochs": "0.2", "--num_training_steps": "2", "--max_seq_len": "64"}
    words = [short.get(before, word) for before, word in zip(["", *words], words, strict=False)]
    assert main([*words, "--validation_frac", "0.1"]) == 0
    assert (Path("out") / "final" / "adapter_config.json").is_file()
