"""What is said of models whose layers are not plain linear ones."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from fivefold.errors import ModelError
from fivefold.lowrank.targets import find_targets


@pytest.mark.parametrize("patterns", [["*.attn.c_proj"], []])
def test_layers_of_gpt2s_kind_are_named_as_not_supported(patterns):
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=4, vocab_size=64, bos_token_id=1, eos_token_id=2))
    with pytest.raises(ModelError, match=r"none \(its Conv1D layers are not supported\)"):
        find_targets(model, "attn", patterns)
