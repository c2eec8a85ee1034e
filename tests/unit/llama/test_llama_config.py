"""LLaMA by name and by file."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold.errors import ModelError
from fivefold.llama.config import from_name_or_file, get_preset, preset_names

# What the tables of the GaLore family call these shapes: their sizes in millions.
NOMINAL_MILLIONS = {"20m": 20, "60m": 58, "130m": 134, "350m": 368, "1b": 1339, "7b": 6738}


def num_parameters(config: LlamaConfig) -> int:
    """Of a model without memory."""
    with torch.device("meta"):
        return LlamaForCausalLM(config).num_parameters()


@pytest.mark.parametrize("name", preset_names())
def test_the_parameters_of_a_preset_are_those_of_its_shape(name):
    config = get_preset(name)
    width = config.hidden_size
    block = 4 * width**2 + 3 * width * config.intermediate_size + 2 * width
    assert num_parameters(config) == 2 * config.vocab_size * width + config.num_hidden_layers * block + width
    assert not config.tie_word_embeddings
    assert config.num_key_value_heads == config.num_attention_heads
    nominal = NOMINAL_MILLIONS.get(name.removeprefix("llama_"))
    assert nominal is None or round(num_parameters(config) / 1e6) == nominal


def test_names_and_paths_find_the_preset():
    for name in ("60m", "llama_60m", "configs/llama_60m.json", "60m.json"):
        assert from_name_or_file(name).to_dict() == get_preset("60m").to_dict()
    assert from_name_or_file("60m", vocab_size=97).vocab_size == 97
    for build in (get_preset, from_name_or_file):
        with pytest.raises(ModelError, match="llama_1b, llama_20m"):
            build("61m")


def test_a_file_of_the_galore_family_is_read(tmp_path):
    fields = {
        "architectures": ["LLaMAForCausalLM"],
        "bos_token_id": 0,
        "eos_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": 512,
        "intermediate_size": 1376,
        "initializer_range": 0.02,
        "max_sequence_length": 1024,
        "num_attention_heads": 8,
        "num_hidden_layers": 8,
        "pad_token_id": -1,
        "rms_norm_eps": 1e-06,
        "vocab_size": 32000,
    }
    (tmp_path / "llama_60m.json").write_text(json.dumps(fields))
    config = from_name_or_file(str(tmp_path / "llama_60m.json"))
    expected = get_preset("60m", bos_token_id=0, eos_token_id=1).to_dict()
    assert config.to_dict() | {"architectures": None} == expected | {"architectures": None}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[]", "holds a list"),
        ('{"model_type": "t5"}', "is of model type 't5'"),
        ('{"hidden_size": 130, "num_attention_heads": 4}', "not a multiple of the number of attention heads"),
        ('{"hidden_size": "wide"}', "expected int, got str"),
        ('{"num_attention_heads": 0}', "num_attention_heads is 0"),
        ('{"num_hidden_layers": -1}', "num_hidden_layers is -1"),
        ('{"num_key_value_heads": 3}', "must be a multiple of num_key_value_heads 3"),
        ('{"hidden_size": 12, "num_attention_heads": 4}', "a head has 3 dimensions"),
        ('{"hidden_act": "sliu"}', "hidden_act is 'sliu'"),
    ],
)
def test_files_that_are_no_llama_are_refused(content, sentence, tmp_path):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=sentence):
        from_name_or_file(str(tmp_path / "config.json"))
