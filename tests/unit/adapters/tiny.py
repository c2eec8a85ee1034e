"""Models that every method of peft's can be tried on in a moment, dense and at low rank."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.lowrank.convert import convert

T5_BATCH = {"input_ids": torch.arange(2, 10)[None], "labels": torch.arange(2, 8)[None]}
LLAMA_BATCH = {"input_ids": torch.arange(2, 10)[None], "labels": torch.arange(2, 10)[None]}


def t5(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4}
    return T5Model(T5Config(**shape, dropout_rate=0.0, **changes))


def llama(**changes):
    torch.manual_seed(0)
    shape = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=4, **changes))


def _thin(model):
    convert(model, scope="all", attn_rank=32, mlp_rank=32, init="spectral")
    return model


MODELS = {
    "t5": (t5, T5_BATCH),
    "llama": (llama, LLAMA_BATCH),
    "low_rank_t5": (lambda: _thin(t5()), T5_BATCH),
    "low_rank_llama": (lambda: _thin(llama()), LLAMA_BATCH),
}


def trained(model, batch, steps=3, lr=1e-2):
    """The model after some steps on one batch; its losses."""
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    return losses


@torch.no_grad()
def logits(model, batch):
    inputs = {"input_ids": batch["input_ids"]}
    if batch is T5_BATCH:
        inputs["decoder_input_ids"] = batch["labels"]
    return model.eval()(**inputs).logits
