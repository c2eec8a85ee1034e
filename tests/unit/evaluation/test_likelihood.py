"""Likelihoods of any number of answers to each prompt, against one ordinary pass for each, in float64."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.evaluation.likelihood import answer_likelihoods, by_length

VOCAB_SIZE = 64


def t5() -> T5Model:
    shape = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    return T5Model(T5Config(vocab_size=VOCAB_SIZE, **shape)).double().eval()


def llama() -> LlamaForCausalLM:
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, num_key_value_heads=2, **shape)).double().eval()


@torch.no_grad()
def alone(model, prompt, answer):
    prompt_ids, answer_ids = (torch.from_numpy(ids).long()[None] for ids in (prompt, answer))
    if isinstance(model, T5Model):
        logits = model(input_ids=prompt_ids, labels=answer_ids).logits
    else:
        logits = model(input_ids=torch.cat([prompt_ids, answer_ids], 1)).logits[:, len(prompt) - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, answer_ids[..., None]).sum()
    return float(logp), bool((logits.argmax(-1) == answer_ids).all())


@pytest.mark.parametrize("build", [t5, llama])
def test_as_alone(build):
    torch.manual_seed(0)
    model, generator = build(), np.random.default_rng(0)

    def text(length):
        return generator.integers(2, VOCAB_SIZE, length)

    prompts = [text(length) for length in (5, 1, 12)]
    answers = [[text(length) for length in lengths] for lengths in ((1, 3, 2), (4,), (2, 2, 1, 6, 3))]
    # What the model would write itself.
    starts = torch.tensor([[0]]) if build is t5 else None
    for prompt, of_one in zip(prompts, answers, strict=True):
        ids = torch.from_numpy(prompt)[None]
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=starts).logits if build is t5 else model(ids).logits
        of_one.append(logits[0, -1:].argmax(-1).numpy())
    found = answer_likelihoods(model, prompts, answers, pad_id=0)
    assert [len(of_one) for of_one in found] == [4, 2, 6]
    for prompt, of_one, likelihoods in zip(prompts, answers, found, strict=True):
        assert likelihoods[-1].is_greedy
        for answer, likelihood in zip(of_one, likelihoods, strict=True):
            logp, is_greedy = alone(model, prompt, answer)
            assert likelihood.logp == pytest.approx(logp, abs=1e-9)
            assert likelihood.is_greedy == is_greedy


def test_batches_of_like_length():
    assert by_length([3, 9, 1, 9, 4], 2) == [[1, 3], [4, 0], [2]]
    assert by_length([], 4) == []
