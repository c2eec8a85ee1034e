"""The causal objective against the loss that transformers' decoders compute from their labels."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config
from transformers import Qwen3ForCausalLM as Qwen3

from fivefold.objectives.causal import CausalObjective
from fivefold.objectives.settings import LossSettings

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 97}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97, "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}


def decoder(name: str) -> PreTrainedModel:
    """A tiny one with weights of its own."""
    torch.manual_seed(0)
    match name:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**SHAPE))
        case "qwen3":
            return Qwen3(Qwen3Config(**SHAPE, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True))
        case _:
            return GPT2LMHeadModel(GPT2Config(**SMALL))


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_loss_and_gradient_are_those_of_transformers(name, is_padded):
    model = decoder(name).train()
    ids = torch.randint(3, 97, (4, 24), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "labels": ids.clone()}
    if is_padded:
        mask = torch.arange(24) < torch.tensor([24, 17, 2, 9])[:, None]
        batch = {
            "input_ids": ids.where(mask, 0),
            "labels": ids.where(mask, -100),
            "attention_mask": mask.long(),
        }
    objective = CausalObjective(LossSettings())
    model(**batch).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    expected_loss = model(**batch).loss.item()
    model.zero_grad()
    terms, count = objective(model, batch), objective.count(batch)
    (terms.loss_sum / count).backward()
    assert count == (48 if is_padded else 92)
    tokens = objective.count_tokens(batch)
    assert tokens.total == (52 if is_padded else 96)
    assert tokens.nonpadding_fracs == {"input_nonpadding_frac": (52 if is_padded else 96) / 96}
    # Both work in float32: sums of a few thousand terms, in another order and, when padded, by another kernel.
    assert terms.nll_sum.item() / count == pytest.approx(expected_loss, rel=1e-6)
    assert terms.loss_sum.item() == terms.nll_sum.item()
    got = [parameter.grad for parameter in model.parameters()]
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-6)
