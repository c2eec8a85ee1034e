"""What a user can do wrong around low rank: one sentence, exit code 2, nothing half-written; singular factors go on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_bad_input import fingerprint, leftovers, the_sentence
from transformers import AutoModelForSeq2SeqLM, GPTNeoXConfig, GPTNeoXForCausalLM, T5ForConditionalGeneration

from fivefold.cli import main

LORO = {"optimizer": "loro_adamw", "loro_freq": 3, "loro_refresh": "all", "loro_refresh_freq": 3}
THIN = {"loro_scope": "all", "loro_attn_rank": 8, "loro_mlp_rank": 12}
FULL = dict.fromkeys(THIN)
GO_ON = {"model": "thin/final", "model_config": None}

Refusal = Callable[..., str]


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that must fail and change no file here, and give its sentence."""

    def refuse(*words: object) -> str:
        before = fingerprint(Path())
        folders = sorted(Path().rglob("*"))
        capsys.readouterr()
        assert main([str(word) for word in words]) == 2
        assert sorted(Path().rglob("*")) == folders
        assert fingerprint(Path()) == before
        return the_sentence(capsys.readouterr().err, str(words[0]))

    return refuse


@pytest.fixture(scope="module")
def thin_run(small_run, tmp_path_factory) -> Path:
    """A finished low-rank run of 8 steps with checkpoints at 6 and 8."""
    folder = tmp_path_factory.mktemp("thin") / "run"
    assert main(small_run.pretrain(**THIN | LORO | {"eval_every": 0, "output_dir": folder})) == 0
    return folder


@pytest.fixture
def here(small_run, thin_run, tmp_path, monkeypatch) -> Path:
    """A folder to work in, with the dense and the low-rank run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run.run, "dense", symlinks=True)
    shutil.copytree(thin_run, "thin", symlinks=True)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loro_attn_rank": 0}, "loro_attn_rank is 0, but a rank must be 1 or above"),
        ({"loro_mlp_rank": -4}, "loro_mlp_rank is -4"),
        ({"loro_attn_rank": 0.5}, "--loro_attn_rank got '0.5'; it takes a whole number"),
        ({"loro_rank": 8}, "There is no flag --loro_rank; did you mean"),
        ({"loro_scope": "attention"}, "it takes one of all, attn, mlp"),
        ({"loro_scope": None}, "--loro_attn_rank and --loro_mlp_rank would change nothing without --loro_scope"),
        ({"loro_scope": "mlp", "loro_mlp_dense": True}, "which --loro_mlp_dense keeps; drop one"),
        ({"loro_init": "xaiver"}, "loro_init is 'xaiver', but it must be one of xavier, "),
        ({"loro_init": "randn"}, "such as randn_0.02"),
        ({"loro_init": "const_0"}, "makes both factors zero, and such a layer never learns"),
        ({"loro_init": "const_0", "dry_run": True}, "makes both factors zero, and such a layer never learns"),
        ({"loro_init": "randn_.0e3", "dry_run": True}, "makes both factors zero, and such a layer never learns"),
        ({"loro_scope": "attn", "loro_attn_targets": "*.qkv"}, "'*.qkv' matches no linear layer of T5Model; there are"),
        ({"loro_mlp_targets": "*.SelfAttention.q"}, "matches as an attention and as a feed-forward layer"),
        ({"loro_scope": "attn", "loro_mlp_targets": "*.wo"}, "mlp_targets are given, but the scope is attn"),
        (FULL | {"optimizer": "loro_adamw"}, "this model has none; give --loro_scope all"),
        (FULL | {"optimizer": "loro_muon"}, "--optimizer loro_muon trains low-rank layers, but this model has none"),
        (FULL | {"optimizer": "spectron"}, "--optimizer spectron trains low-rank layers, but this model has none"),
        ({"optimizer": "adamw", "loro_freq": 500}, "adamw has no loro_freq; that is of --optimizer loro_adamw"),
        ({"optimizer": "loro_muon", "loro_freq": 500}, "loro_muon has no loro_freq"),
        ({"optimizer": "loro_muon", "loro_momentum": "tangent"}, "loro_muon has no loro_momentum"),
        ({"optimizer": "spectron", "loro_lr_scaler": -1}, "spectron has no loro_lr_scaler"),
        ({"optimizer": "loro_adamw", "momentum": 0.9}, "loro_adamw has no momentum"),
        (LORO | {"loro_freq": 0}, "loro_freq is 0, but it must be 1"),
        (LORO | {"loro_refresh_freq": None}, "loro_refresh is all and loro_refresh_freq 0; give both or neither"),
        (LORO | {"loro_refresh": None}, "loro_refresh is none and loro_refresh_freq 3; give both or neither"),
        (LORO | {"loro_refresh_freq": -1}, "loro_refresh_freq is -1"),
        (LORO | {"loro_refresh": "adam"}, "it takes one of none, reg, lrk, all"),
        (LORO | {"loro_type": "lora"}, "it takes one of loro, rebalance, eucl"),
        (LORO | {"loro_lr_scaler": "r/d"}, "a number above 0, -1 (rank / hidden size) or auto"),
        (LORO | {"loro_lr_scaler": "nan"}, "loro_lr_scaler is 'nan'"),
        (LORO | {"loro_lr_scaler": 0}, "loro_lr_scaler is '0'"),
        (LORO | {"scheduler": "cosine_restart"}, "needs the steps between two restarts"),
        (LORO | {"cosine_restart_freq": 500}, "--scheduler cosine has no cosine_restart_freq: drop the flag or choose"),
        ({"scheduler": "cosine", "cosine_restart_warmup": 9}, "--scheduler cosine has no cosine_restart_warmup"),
        ({"scheduler": "cosine", "decay_frac": 0.4}, "--scheduler cosine has no decay_frac"),
        ({"scheduler": "constant", "min_lr_ratio": 0.5}, "--scheduler constant has no min_lr_ratio"),
        ({"scheduler": "cosine_restart_zero"}, "is refused: cosine_restart warms up from zero here"),
        (LORO | {"loro_type": "eucl", "loro_scale_exact": True}, "--loro_type eucl has no loro_scale_exact"),
        (LORO | {"loro_type": "rebalance", "loro_scale_exact": True}, "--loro_type rebalance has no loro_scale_exact"),
        ({"pure_bf16": True, "dtype": "float32"}, "pure_bf16 goes with --dtype bfloat16, but dtype is float32"),
        ({"pure_bf16": True, "dtype": "fp16"}, "but dtype is float16"),
        ({"dense_lr": 0}, "dense_lr is 0.0, but it must be above 0"),
        (FULL | {"rank": 64}, "adamw has no rank"),
        (FULL | {"optimizer": "galore_adamw", "update_proj_gap": 0}, "update_proj_gap is 0"),
        ({"optimizer": "loro"}, "it takes one of adam, "),
        ({"model_config": "configs/llama_60m.json"}, "is the LLaMA preset llama_60m; give --model_type llama"),
    ],
)
def test_settings_that_cannot_be(changes, sentence, refusal, small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(*small_run.pretrain(**{"output_dir": "out"} | THIN | changes))


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        *(
            (flag, "2:4 sparsity is not part of fivefold")
            for flag in (
                *("enable_2to4_sparse", "attn_2by4", "mlp_2by4", "activation_2by4", "permute_2by4", "dx_direct_sparse"),
                *("squ_relu relu2", "activation_sparse_method naive", "activation_dense_warmup_steps 9", "flip_rate 1"),
            )
        ),
        *((flag, "CoLA's nonlinearity") for flag in ("cola_silu", "cola_sparse_method mvue", "optimizer adamw_cola")),
        *((flag, "LOST's sparse columns") for flag in ("lost_sparsity 0.05", "lost_gamma 0.5", "optimizer lost")),
        ("loro_fallback_freq 5", "need no fallback"),
        ("momentum_reset_steps 200", "--loro_refresh all --loro_refresh_freq STEPS"),
        ("c4_local", "with --data"),
        ("proj_type std", "projected on their smaller side, which GaLore calls std"),
    ],
)
def test_what_only_the_fork_has_is_refused_by_name(flags, reason, refusal, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal("pretrain", *f"--{flags}".split())
    assert f"--{flags}" in said or f"--{flags.split()[0]} is refused" in said
    assert reason in said


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (THIN | LORO | {"loro_attn_rank": 4}, "do not fit the model"),
        (THIN | LORO | {"loro_scope": "attn", "loro_mlp_rank": None}, "do not fit the model"),
        (FULL, "do not fit the model"),
        (THIN | {"optimizer": "loro_muon"}, "holds the state of LOROAdamW, but this run uses LOROMuon"),
        (THIN | {"optimizer": "adamw"}, "holds the state of LOROAdamW, but this run uses AdamW"),
        (THIN | LORO | {"output_dir": "dense"}, "do not fit the model"),
    ],
)
def test_resuming_another_run(changes, sentence, here, refusal, small_run):
    words = {"output_dir": "thin", "resume": True, "num_training_steps": 12, "eval_every": 0}
    said = refusal(*small_run.pretrain(**words | changes))
    assert sentence in said
    assert len(said) < 500  # not every tensor of the model


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loro_init": "xavier"}, "--loro_init would change nothing in a model that is low rank already"),
        ({"loro_attn_targets": "*.q"}, "--loro_attn_targets would change nothing in a model that is low rank already"),
        ({"loro_scope": "attn"}, "leaves out layers that the model has at low rank; give all"),
        ({"model_type": "llama"}, "thin/final is of the family t5, but --model_type is llama"),
        ({"vocab_size": 600}, "has its own shape"),
        ({"model": "thin"}, "thin holds no config.json"),
    ],
)
def test_going_on_from_a_low_rank_model(changes, sentence, here, refusal, small_run):
    assert sentence in refusal(*small_run.pretrain(**GO_ON | THIN | {"output_dir": "out"} | changes))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["export", "dense/final", "--dense", "--output_dir", "new"], "is a dense model already"),
        (["export", "thin/final", "--output_dir", "new"], "Say in which form: --dense"),
        (["export", "thin/final", "--dense", "--output_dir", "dense"], "dense exists already; name a new folder"),
        (["export", "thin/final", "--dense"], "Missing --output_dir"),
        (["export", "thin", "--dense", "--output_dir", "new"], "thin holds no config.json"),
        (["export", "nothing", "--dense", "--output_dir", "new"], "No model at nothing"),
        (["export", "damaged", "--dense", "--output_dir", "new"], "was changed or damaged"),
        (["export", "thin/final", "--dense", "--dtype", "int8", "--output_dir", "new"], "it takes one of float32"),
        (["inspect", "nothing"], "No model at nothing"),
        (["inspect", "thin"], "thin holds no config.json"),
        (["inspect"], "Missing --model"),
        (["inspect", "thin/final", "--output_dir", "damaged/config.json"], "is a file; name a folder"),
        (["generate", "--model", "damaged", "--text", "abc"], "was changed or damaged"),
        (["doctor", "please"], "Got 'please' where a flag was expected"),
    ],
)
def test_verbs_that_cannot_be(words, sentence, here, refusal):
    shutil.copytree("thin/final", "damaged")
    weights = Path("damaged/low_rank.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert sentence in refusal(*words)


def missing(weights: dict[str, torch.Tensor]) -> None:
    """Lose a factor."""
    del weights["encoder.block.0.layer.0.SelfAttention.q.left.weight"]


def narrower(weights: dict[str, torch.Tensor]) -> None:
    """A factor of another rank."""
    name = "encoder.block.0.layer.0.SelfAttention.q.left.weight"
    weights[name] = weights[name][:, :4].clone()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [(missing, "q.left.weight is missing"), (narrower, "q.left.weight has the shape [32, 4], not [32, 8]")],
)
def test_weights_that_do_not_fit(change, sentence, here, refusal):
    change_weights(Path("thin/final"), change)
    assert sentence in refusal("generate", "--model", "thin/final", "--text", "abc")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """As if another program had written the model: other weights, no manifest."""
    (folder / "manifest.json").unlink()
    weights = load_file(folder / "low_rank.safetensors")
    change(weights)
    save_file(weights, folder / "low_rank.safetensors", {"format": "pt"})


@pytest.mark.parametrize("opener", [AutoModelForSeq2SeqLM, T5ForConditionalGeneration])
@pytest.mark.filterwarnings("ignore")  # that the folder is of another type, just before it refuses
def test_transformers_does_not_open_it_with_random_weights(opener, thin_run):
    with pytest.raises((ValueError, OSError), match=r"low_rank_t5|model\.safetensors"):
        opener.from_pretrained(thin_run / "final")


def test_a_decoder_whose_layers_are_not_known_by_name(refusal, small_run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    GPTNeoXForCausalLM(GPTNeoXConfig(**shape, num_attention_heads=4)).save_pretrained("neox")
    flags = THIN | {"model": "neox", "model_config": None, "tokenizer": small_run.tokenizer, "output_dir": "out"}
    words = small_run.pretrain(**flags | {"num_training_steps": 2, "eval_every": 0})
    said = refusal(*words)
    assert "does not know the attention layers of GPTNeoXForCausalLM" in said
    assert "gpt_neox.layers.*.attention.query_key_value" in said
    assert "--loro_attn_targets" in said
    words += ["--loro_attn_targets", "*.query_key_value", "*.attention.dense", "--loro_mlp_targets", "*.dense_*"]
    assert main(words) == 0
    assert "8 linear layers are products of rank 8, 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags", [LORO | {"loro_freq": 1}, {"optimizer": "loro_muon"}], ids=["loro_adamw", "loro_muon"]
)
class TestSingularFactors:
    """They neither crash nor stop a run, and the log counts them."""

    def log_of(self, words: list[str]) -> list[dict]:
        """Of a run that must succeed."""
        assert main(words) == 0
        log = [json.loads(line) for line in Path("out/log.jsonl").read_text().splitlines()]
        steps = [line for line in log if "loss" in line]
        assert all(0 < line["loss"] < 20 for line in steps)
        return steps

    def test_constant_factors(self, flags, small_run, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        flags = flags | THIN | {"loro_init": "const_0.1", "eval_every": 0, "output_dir": "out"}
        steps = self.log_of(small_run.pretrain(**flags))
        assert steps[0]["recovered_factors"] == 32  # rank 1, every one of them
        assert steps[-1]["recovered_factors"] < steps[0]["recovered_factors"]

    def test_a_layer_that_died(self, flags, here, small_run):
        name = "decoder.block.1.layer.2.DenseReluDense.wo"

        def kill(weights: dict[str, torch.Tensor]) -> None:
            for side in ("left", "right"):
                weights[f"{name}.{side}.weight"].zero_()

        change_weights(Path("thin/final"), kill)
        flags = flags | GO_ON | {"num_training_steps": 3, "eval_every": 0, "output_dir": "out"}
        steps = self.log_of(small_run.pretrain(**flags))
        assert steps[0]["recovered_factors"] == 1
        weights = load_file("out/final/low_rank.safetensors")
        assert all(weight.isfinite().all() for weight in weights.values())

    def test_a_gradient_that_is_not_finite(self, flags, refusal, here, small_run, capsys):
        # dense_lr too: wild factors alone leave the loss of loro_muon finite
        much = {"lr": 1e30, "dense_lr": 1e30, "warmup_steps": 0, "save_every": 1, "eval_every": 0}
        words = small_run.pretrain(**flags | THIN | much | {"output_dir": "out"})
        assert main(words) == 2
        said = the_sentence(capsys.readouterr().err, "pretrain")
        assert "of step 2 is nan; the optimizer has not moved and earlier checkpoints are untouched" in said
        assert [folder.name for folder in Path("out").glob("step_*")] == ["step_000001"]
        assert not Path("out/final").exists()
        assert not leftovers(Path("out"))
