"""`fivefold export`: a folder that transformers opens as the same model, or nothing at all."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from fivefold import T5Config, T5Model
from fivefold.adapters.attach import attach_adapter
from fivefold.cli import main
from fivefold.lowrank.convert import convert
from fivefold.lowrank.store import load_factored, save_model
from fivefold.models.load import load_model
from fivefold.tokenizer.load import load_tokenizer, tokenizer_fingerprint
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

TEXTS = [f"story {number}: there were {number * 31 % 97} dwarfs" for number in range(2000)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, TokenizerSettings(output_dir="", vocab_size=400, num_sentinels=20)).tokenizer


def _t5(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return T5Model(T5Config(**shape, **changes))


def _llama(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, num_attention_heads=4, **changes))


MODELS = {
    "t5": _t5,
    "t5_untied": lambda: _t5(tie_word_embeddings=False, feed_forward_proj="gated-gelu"),
    "llama": _llama,
    "llama_tied": lambda: _llama(tie_word_embeddings=True),
}


def _stored(name: str, folder: Path, tokenizer=None) -> Path:
    model = MODELS[name]()
    convert(model, scope="all", attn_rank=8, mlp_rank=12, init="spectral")
    save_model(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _logits(model):
    tokens = torch.arange(20).reshape(2, 10)
    targets = {"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model.eval()(input_ids=tokens, **targets).logits


def export(*words: object) -> int:
    return main(["export", *map(str, words)])


@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_the_same_model_with_its_tokenizer(name, tmp_path, tokenizer, capsys):
    source = _stored(name, tmp_path / "factored", tokenizer)
    assert export(source, "--dense", "--output_dir", tmp_path / "out" / "dense") == 0
    assert "with tokenizer" in capsys.readouterr().out
    opener = transformers.T5ForConditionalGeneration if "t5" in name else transformers.AutoModelForCausalLM
    dense, info = opener.from_pretrained(tmp_path / "out" / "dense", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    factored = _logits(load_factored(source))
    # The bound that the verb itself holds its result to.
    torch.testing.assert_close(_logits(dense), factored, rtol=0, atol=1e-5 * factored.abs().max().item())
    assert not hasattr(dense.config, "low_rank")
    exported = load_tokenizer(tmp_path / "out" / "dense")
    assert tokenizer_fingerprint(exported) == tokenizer_fingerprint(tokenizer)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dense"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_the_bytes_on_request(dtype, tmp_path, capsys):
    source = _stored("llama", tmp_path / "factored")
    assert export(source, "--dense", "--output_dir", tmp_path / "dense", "--dtype", dtype) == 0
    assert "without a tokenizer" in capsys.readouterr().out
    stored = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert stored.dtype == getattr(torch, dtype)
    expected = _logits(load_factored(source))
    # 8 bits of bfloat16 a weight, some hundred of them summed.
    torch.testing.assert_close(_logits(load_model(str(tmp_path / "dense"))), expected, rtol=0, atol=0.02)


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    source = _stored("t5", tmp_path / "factored")
    assert export(source, "--dense", "--output_dir", tmp_path / "dense", "--dry_run") == 0
    assert "would write" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["factored"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["factored", "--output_dir", "new"], "Say in which form: --dense"),
        (["factored", "--dense", "--output_dir", "old"], "exists already"),
        (["dense", "--dense", "--output_dir", "new"], "is a dense model already"),
        (["broken", "--dense", "--output_dir", "new"], "cannot be read as weights"),
        (["nan", "--dense", "--output_dir", "new"], "differs from nan by nan"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(words, sentence, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("old").mkdir()
    _llama().save_pretrained("dense")
    for name in ("factored", "broken", "nan"):
        _stored("llama", Path(name))
    Path("broken/low_rank.safetensors").write_bytes(b"x")
    diverged = load_factored("nan")
    diverged.model.norm.weight.data.fill_(torch.nan)
    save_model(diverged, "nan")
    before = sorted(Path().iterdir())
    assert export(*words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("fivefold export: ")
    assert sentence in error
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", ["lora_rank8", "dora_rank8", "loha_rank8"])
def test_a_merged_adapter_says_what_it_said_beside_its_base(method, name, low_rank, tokenizer, tmp_path, capsys):
    base = tmp_path / "base"
    if low_rank:
        _stored(name, base, tokenizer)
    else:
        save_model(MODELS[name](), base)
        tokenizer.save_pretrained(base)
    adapted = attach_adapter(load_model(str(base)), method, str(base), seed=0)
    with torch.no_grad():
        for one in adapted.parameters():
            if one.requires_grad:
                one.add_(torch.randn(one.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    adapted.save_pretrained(str(tmp_path / "adapter"))
    expected = _logits(adapted)
    words = ["export", str(tmp_path / "adapter"), "--merge", *(["--dense"] if low_rank else [])]
    assert main([*words, "--output_dir", str(tmp_path / "merged")]) == 0
    assert f"the adapter merged into {base}" in capsys.readouterr().out
    family = transformers.AutoModelForSeq2SeqLM if "t5" in name else transformers.AutoModelForCausalLM
    torch.testing.assert_close(_logits(family.from_pretrained(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
    assert tokenizer_fingerprint(load_tokenizer(tmp_path / "merged")) == tokenizer_fingerprint(tokenizer)


def test_forms_that_do_not_fit_are_refused(tokenizer, tmp_path, capsys):
    save_model(MODELS["llama"](), tmp_path / "base")
    for fields in ({"r": 4}, {"lora_bias": True}):
        source = {"peft_type": "LORA", **fields}
        attach_adapter(MODELS["llama"](), source, str(tmp_path / "base"), seed=0).save_pretrained(str(tmp_path / "a"))
    for words, message in (
        (["base", "--merge"], "--merge is for adapters, and"),
        (["a", "--dense"], "is an adapter of .*; add --merge"),
        (["a", "--merge", "--dense"], "is a dense model already: leave --dense out"),
        (["a", "--merge"], "lora_bias adds biases to layers that have none"),
        (["base"], "--dense for a low-rank model, --merge for an adapter"),
    ):
        arguments = ["export", str(tmp_path / words[0]), *words[1:], "--output_dir", str(tmp_path / "out")]
        assert main(arguments) == 2
        assert re.search(message, " ".join(capsys.readouterr().err.split()))
        assert not (tmp_path / "out").exists()
