"""A tiny decoder with random weights of each of many families."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

COMMON = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
}
WIDE_HEADS = {"head_dim": 16}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 24}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
HALF = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {"model_type": "llama", "rope_parameters": LLAMA3},
    "yarn": {"model_type": "llama", "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {"model_type": "llama", "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": WIDE_HEADS,
    "qwen3_moe": WIDE_HEADS | EXPERTS | {"num_experts": 4},
    "gemma": WIDE_HEADS,
    "gemma2": WIDE_HEADS | {"sliding_window": 4096, "query_pre_attn_scalar": 16},
    "gemma3_text": WIDE_HEADS | {"sliding_window": 4096, "query_pre_attn_scalar": 16},
    "phi": {"num_key_value_heads": 4},
    "phi3": {},
    "gpt_neox": {"num_key_value_heads": 4, "rope_parameters": HALF},
    "stablelm": {"rope_parameters": HALF},
    "olmo2": {},
    "olmo3": {"sliding_window": 4096},
    "granite": {},
    "cohere": {},
    "cohere2": {"sliding_window": 4096},
    "starcoder2": {"sliding_window": None},
    "glm": WIDE_HEADS,
    "glm4": WIDE_HEADS,
    "smollm3": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "exaone4": {"sliding_window": 4096},
    "ernie4_5": WIDE_HEADS,
    "nemotron": WIDE_HEADS,
    "seed_oss": WIDE_HEADS,
    "apertus": {},
    "gpt_oss": WIDE_HEADS | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4096},
    "gemma3n_text": {
        "intermediate_size": [48] * 4,
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 4096,
        "vocab_size_per_layer_input": 96,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
        "altup_num_inputs": 2,
        "pad_token_id": None,  # its gradient at an embedding of zeros is NaN
        "head_dim": 8,
    },
    "persimmon": {"num_key_value_heads": 4},
    "falcon": {"num_key_value_heads": 4, "alibi": False, "new_decoder_architecture": False},
}
"""What each one's configuration has beside COMMON."""


def tiny_model(family: str, **changes: Any) -> PreTrainedModel:
    """It, in float32, without dropout."""
    own = FAMILIES[family] | changes
    settings = COMMON | {key: value for key, value in own.items() if key != "model_type"}
    config = AutoConfig.for_model(own.get("model_type", family), **settings)
    for name in ("attention_dropout", "hidden_dropout", "residual_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
