"""A decoder's way through the program: trained, stopped, resumed, continued, asked."""

import json
import logging
import shutil

import pytest
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from fivefold.cli import main
from fivefold.lowrank.store import load_factored

THIN = {"loro_scope": "all", "loro_attn_rank": 8, "loro_mlp_rank": 12}


@pytest.fixture(scope="module", params=[{}, THIN], ids=["full", "thin"])
def run(request, small_run, tmp_path_factory):
    """The folder of a finished run and the function that words its command."""
    folder = tmp_path_factory.mktemp("decoder") / "run"

    def words(**changes):
        flags = {"model_type": "llama", "model_config": "mini", "output_dir": folder} | request.param
        return small_run.pretrain(**flags | changes)

    assert main(words()) == 0
    return folder, words


def test_the_run_says_what_it_resolved(run):
    folder, _ = run
    settings = yaml.safe_load((folder / "run.yaml").read_text())
    assert [settings[name] for name in ("model_type", "model_config", "objective", "z_loss")] == [
        *("llama", "mini", "causal", 0.0)
    ]
    assert settings["append_eos_to_documents"] is True
    losses = [json.loads(line).get("eval_loss") for line in (folder / "log.jsonl").read_text().splitlines()]
    first, *_, last = [loss for loss in losses if loss is not None]
    assert last < first


def test_resumed_it_ends_with_the_same_weights(run, tmp_path):
    folder, words = run
    copy = shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    shutil.rmtree(copy / "final")
    shutil.rmtree(copy / "step_000008")
    assert main(words(output_dir=copy, resume=True)) == 0
    (weights,) = (folder / "final").glob("*.safetensors")
    assert (copy / "final" / weights.name).read_bytes() == weights.read_bytes()


def test_another_run_goes_on_from_it(run, tmp_path):
    folder, words = run
    further = words(model=folder / "final", model_type=None, model_config=None, output_dir=tmp_path / "out")
    assert main([*further, "--dry_run"]) == 0
    assert main(further) == 0
    ends, begins = (
        [json.loads(line).get("eval_loss") for line in (path / "log.jsonl").read_text().splitlines()]
        for path in (folder, tmp_path / "out")
    )
    last = [loss for loss in ends if loss is not None][-1]
    assert begins[0] == last


def test_a_dry_run_counts_the_factors(run, capsys):
    folder, words = run
    assert main([*words(output_dir=folder.parent / "other"), "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert ("28 linear layers are products of rank 8, 12" in printed) == ("--loro_scope" in words())
    block = 4 * 8 * (128 + 128) + 3 * 12 * (128 + 352) if "--loro_scope" in words() else 4 * 128**2 + 3 * 128 * 352
    trained = 2 * 512 * 128 + 9 * 128 + 4 * block
    assert f"{trained:,}, of which {trained:,} train" in printed


def test_it_continues_prompts(run, capsys):
    folder, words = run
    texts = ["abc def", "a", "gh ij ab"]
    assert main(["generate", "--model", str(folder / "final"), "--max_new_tokens", "9", "--text", *texts]) == 0
    printed = capsys.readouterr().out
    assert main(["generate", "--model", str(folder / "final"), "--text", "a ___ b"]) == 2
    assert "has a blank, which only a T5 fills in" in capsys.readouterr().err
    load = load_factored if "--loro_scope" in words() else LlamaForCausalLM.from_pretrained
    model = load(folder / "final")
    tokenizer = AutoTokenizer.from_pretrained(folder / "final")
    expected = ""
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids[:, :-1]
        tokens = model.generate(ids, max_new_tokens=9, suppress_tokens=list(range(500, 512)))[0]
        expected += tokenizer.decode(tokens, skip_special_tokens=True)[len(text) :] + "\n"
    assert printed == expected


def test_without_data_and_tokenizer_it_would_train_on_c4(capsys, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO, "fivefold")
    line = "--model_type llama --model_config configs/llama_60m.json --max_length 256 --dry_run"
    assert main(["pretrain", *line.split()]) == 0
    printed = capsys.readouterr().out
    assert "There is no file configs/llama_60m.json; using the preset llama_60m." in caplog.text
    assert "unchecked      allenai/c4 (a Hub id" in printed
    assert "unchecked      t5-base (a Hub id" in printed
    settings = yaml.safe_load(printed.split("\n\n")[0])
    names = ("data", "validation_data", "validation_split", "tokenizer", "input_length")
    assert [settings[name] for name in names] == [["c4_en"], ["c4_en"], "validation", "t5-base", 256]
    assert "58,073,600, of which 58,073,600 train" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"objective": "span"}, "--objective span needs an encoder"),
        ({"objective": "seq2seq", "data": "pairs.jsonl"}, "--objective seq2seq needs an encoder"),
        ({"model_type": "t5", "model_config": None, "objective": "causal"}, "--objective causal is for decoders"),
        ({"target_length": 8}, "target_length would change nothing"),
        ({"dropout_rate": 0.1}, "--dropout_rate would change nothing"),
        ({"input_length": 2000}, "input_length is 2000, but the model has 1024 positions"),
        ({"model_config": "61m"}, "neither a file nor a LLaMA preset"),
        ({"model_type": None, "model_config": "60m"}, "give --model_type llama"),
        ({"loro_attn_rank": 8}, "would change nothing without --loro_scope"),
    ],
)
def test_what_cannot_be_is_refused(flags, sentence, small_run, tmp_path, capsys):
    words = {"model_type": "llama", "model_config": "mini", "output_dir": tmp_path / "out"}
    assert main(small_run.pretrain(**words | flags)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
