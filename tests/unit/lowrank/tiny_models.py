"""One small model of each family that fivefold factors by itself, and what they say to a batch."""

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from fivefold import T5Config, T5Model

_GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
T5S = {
    "t5": (T5Model, T5Config, {}),
    "t5_gated": (T5Model, T5Config, _GATED),
    "hf_t5": (transformers.T5ForConditionalGeneration, transformers.T5Config, {}),
    "hf_t5_gated": (transformers.T5ForConditionalGeneration, transformers.T5Config, _GATED),
    "hf_umt5": (transformers.UMT5ForConditionalGeneration, transformers.UMT5Config, {}),
}
DECODERS = {
    "llama": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {}),
    "llama_tied": (transformers.LlamaForCausalLM, transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig, {}),
    "qwen2": (transformers.Qwen2ForCausalLM, transformers.Qwen2Config, {}),
    "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config, {}),
}
FAMILIES = [*T5S, *DECODERS]


def build(family: str, **changes: object) -> PreTrainedModel:
    """A model with weights from seed 0, without dropout, in evaluation mode."""
    torch.manual_seed(0)
    if family in T5S:
        model, config, own = T5S[family]
        shape = {"vocab_size": 97, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        shape |= {"dropout_rate": 0.0, "decoder_start_token_id": 0}
    else:
        model, config, own = DECODERS[family]
        shape = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
        shape |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    built = model(config(**(shape | own | changes))).eval()
    if family == "hf_t5_gated":  # transformers ties fresh ones whatever they are told; published weights are not
        built.lm_head = torch.nn.Linear(32, 97, bias=False)
    return built


def logits(model: PreTrainedModel) -> Tensor:
    """[2, T, V] for the same random tokens each time."""
    tokens = torch.randint(3, 97, (2, 9), generator=torch.Generator().manual_seed(1))
    targets = {"decoder_input_ids": tokens[:, :5]} if model.config.is_encoder_decoder else {}
    return model(input_ids=tokens, **targets).logits
