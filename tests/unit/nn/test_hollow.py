"""Models without numbers: what they share, where they came from, and what they say about themselves."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.nn.hollow import hollow_copy, is_hollow

SHAPE = {"vocab_size": 50, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2}


def tied_t5() -> T5Model:
    return T5Model(T5Config(**SHAPE, tie_word_embeddings=True, position="rope"))


def llama() -> LlamaForCausalLM:
    shape = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2))


@pytest.mark.parametrize("build", [tied_t5, llama])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_copy_has_the_shapes_the_ties_and_what_trains_and_the_model_stays(build, device):
    with torch.device(device):
        model = build().to(torch.bfloat16)
    next(model.parameters()).requires_grad_(False)
    before = {name: (id(tensor), tensor.device.type) for name, tensor in model.named_parameters()}
    hollow = hollow_copy(model)
    assert {name: (id(tensor), tensor.device.type) for name, tensor in model.named_parameters()} == before
    tensors = [*hollow.parameters(), *hollow.buffers()]
    assert tensors
    assert all(is_hollow(tensor) and tensor.device.type == "cpu" for tensor in tensors)
    described = [
        [(name, p.shape, p.dtype, p.requires_grad) for name, p in one.named_parameters()] for one in (model, hollow)
    ]
    assert described[0] == described[1]  # named_parameters leaves shared ones out, so ties are the same too


def test_ordinary_tensors_are_not_hollow():
    assert not is_hollow(torch.zeros(2))
    assert not is_hollow(torch.zeros(2, device="meta"))
    assert not is_hollow(None)
