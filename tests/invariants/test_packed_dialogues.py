"""A decoder's conversations: packed and padded rows, picked and whole outputs have the same loss and gradients."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.data.examples import PackedSource
from fivefold.data.loader import tensors
from fivefold.data.pairs import EncodedSource
from fivefold.errors import ModelError
from fivefold.lowrank.convert import convert
from fivefold.objectives import causal
from fivefold.objectives.causal import CausalObjective, check_packing
from fivefold.objectives.settings import LossSettings

SHAPE = {"vocab_size": 67, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64}
SHAPE |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ROW = 40


def _dense(config=LlamaConfig, model=LlamaForCausalLM, **changes):
    torch.manual_seed(0)
    return model(config(**SHAPE, **changes)).double()


def _low_rank():
    model = _dense()
    convert(model, scope="all", attn_rank=4, mlp_rank=4, init="spectral")
    return model


def _adapted():
    with quiet_peft():
        model = get_peft_model(_dense(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"]))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide the other factor's gradient
            torch.nn.init.normal_(parameter, std=0.1)
    return model.double()


MODELS = {
    "llama": _dense,
    "tied": lambda: _dense(tie_word_embeddings=True),
    "mistral": lambda: _dense(MistralConfig, MistralForCausalLM, sliding_window=6),
    "qwen3": lambda: _dense(Qwen3Config, Qwen3ForCausalLM),
    "eager": lambda: _dense(attn_implementation="eager"),
    "low_rank": _low_rank,
    "lora": _adapted,
}


def _examples():
    """Conversations of one to three answers, of which the last may have been cut."""
    random = np.random.default_rng(0)
    inputs, labels = [], []
    for _ in range(20):
        ids, learned = np.zeros(0, np.int32), np.zeros(0, np.int32)
        for _ in range(random.integers(1, 4)):
            prompt, answer = (random.integers(3, 67, random.integers(1, 7)).astype(np.int32) for _ in range(2))
            ids = np.concatenate([ids, prompt, answer])
            learned = np.concatenate([learned, np.full(len(prompt), -100, np.int32), answer])
        inputs.append(ids)
        labels.append(learned)
    return EncodedSource(inputs, labels, pad_id=0, seed=0, shuffle=False)


def _batch(source):
    return tensors(source.batch(np.arange(source.samples_per_epoch)))


def _measure(model, batch):
    objective = CausalObjective(LossSettings(z_loss=1e-3, label_smoothing=0.1))
    terms = objective(model, batch)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(terms.loss_sum, trained)
    return objective.count(batch), [terms.loss_sum, terms.nll_sum, *gradients]


@pytest.mark.parametrize("name", MODELS)
def test_packed_equals_padded(name):
    model = MODELS[name]()
    padded, packed = _batch(_examples()), _batch(PackedSource(_examples(), (ROW, ROW)))
    assert packed["input_ids"].numel() < 0.7 * padded["input_ids"].numel()
    (count, alone), (packed_count, together) = _measure(model, padded), _measure(model, packed)
    assert count == packed_count
    torch.testing.assert_close(together, alone)
    assert all(part.abs().max() > 0 for part in together)


@pytest.mark.parametrize("name", ["llama", "low_rank", "lora"])
@pytest.mark.parametrize("is_packed", [False, True])
def test_only_what_is_learned_goes_through_the_output_layer(name, is_packed, monkeypatch):
    model = MODELS[name]()
    batch = _batch(PackedSource(_examples(), (ROW, ROW)) if is_packed else _examples())
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[:-1]))
    count, picked = _measure(model, batch)
    monkeypatch.setattr(causal, "_SPARSE", 0)
    _, whole = _measure(model, batch)
    torch.testing.assert_close(picked, whole)
    assert shapes == [(count,), batch["input_ids"].shape]


def test_a_compiled_model_sees_batches_of_one_shape():
    model, batch, shapes = _dense(), _batch(_examples()), []
    _, expected = _measure(model, batch)
    model.compile(backend="eager")
    model.get_output_embeddings().register_forward_hook(lambda _, inputs, output: shapes.append(output.shape[:-1]))
    _, compiled = _measure(model, batch)
    torch.testing.assert_close(compiled, expected)
    assert shapes[0] == batch["input_ids"].shape


def test_the_loss_is_transformers():
    model = _dense()
    batch = _batch(_examples())
    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    objective = CausalObjective(LossSettings())
    terms = objective(model, batch)
    # transformers takes its loss in float32.
    torch.testing.assert_close((terms.loss_sum / objective.count(batch)).float(), theirs)
    packed = _batch(PackedSource(_examples(), (ROW, ROW)))
    torch.testing.assert_close((objective(model, packed).loss_sum / objective.count(packed)).float(), theirs)
    assert (
        objective.count_tokens(packed).inputs == objective.count_tokens(batch).inputs == batch["attention_mask"].sum()
    )


def test_a_batch_without_answers_adds_nothing_and_is_finite():
    model, objective = _dense(), CausalObjective(LossSettings(z_loss=1e-3))
    batch = _batch(_examples())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    assert objective.count(batch) == 0
    terms = objective(model, batch)
    assert (terms.loss_sum.item(), terms.nll_sum.item()) == (0, 0)
    terms.loss_sum.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_models_that_can_pack_pass_the_check(name):
    check_packing(MODELS[name]())


def test_a_model_that_carries_a_state_along_the_row_is_refused():
    config = MambaConfig(vocab_size=67, hidden_size=16, num_hidden_layers=1, state_size=4, initializer_range=0.5)
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="MambaForCausalLM reads a conversation otherwise when another one"):
        check_packing(MambaForCausalLM(config))
