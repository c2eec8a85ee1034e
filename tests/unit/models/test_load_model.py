"""Stored models: whole or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from fivefold.errors import CheckpointError, ModelError
from fivefold.models.load import load_model

SIZES = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 8}


@pytest.fixture
def llama(tmp_path):
    """A stored one, in half precision."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_decoders_come_as_transformers_opens_them_in_float32(llama, tmp_path):
    torch.manual_seed(1)
    qwen = Qwen3ForCausalLM(Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True))
    qwen.save_pretrained(tmp_path / "qwen")
    ids = torch.arange(3, 20)[None]
    for folder, kind in ((llama, LlamaForCausalLM), (tmp_path / "qwen", Qwen3ForCausalLM)):
        model: torch.nn.Module = load_model(str(folder))
        assert isinstance(model, kind)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        with torch.no_grad():
            expected = kind.from_pretrained(folder, dtype=torch.float32)(input_ids=ids).logits
            assert torch.equal(model(input_ids=ids).logits, expected)


def without(name):
    """Drop a tensor."""

    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def with_config(**changes):
    """Change the configuration."""

    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return damage


@pytest.mark.parametrize(
    ("damage", "error", "sentence"),
    [
        (without("model.layers.1.mlp.up_proj.weight"), CheckpointError, r"1\.mlp\.up_proj\.weight is missing"),
        (without("lm_head.weight"), CheckpointError, r"lm_head\.weight is missing"),
        (with_config(num_hidden_layers=3), CheckpointError, r"is missing \(8 more like it\)"),
        (with_config(intermediate_size=9), CheckpointError, r"has the shape \[16, 8\], not \[16, 9\] \(5 more"),
        (with_config(hidden_size=15), CheckpointError, "cannot be opened"),
        (with_config(model_type="bert"), ModelError, "is of model type 'bert'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), CheckpointError, "cannot be opened"),
        (lambda folder: (folder / "model.safetensors").unlink(), CheckpointError, "cannot be opened"),
        (lambda folder: (folder / "config.json").unlink(), CheckpointError, r"holds no config\.json"),
        (lambda folder: (folder / "config.json").write_text("{"), CheckpointError, "No model at"),
    ],
)
def test_damaged_decoders_are_refused(damage, error, sentence, llama):
    damage(llama)
    with pytest.raises(error, match=sentence):
        load_model(str(llama))
