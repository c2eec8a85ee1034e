"""The divergence from samples against the exact one, summed over all answers there can be."""

import itertools

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.training.distributed import Processes
from fivefold.training.divergence import Sampling, kl_per_token

ALONE = Processes(0, 1, torch.device("cpu"))
VOCAB_SIZE, END, MAX_TOKENS = 5, 1, 2


def model_of(family: str, seed: int) -> T5Model | LlamaForCausalLM:
    torch.manual_seed(seed)
    if family == "t5":
        shape = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2, "tie_word_embeddings": False}
        model = T5Model(T5Config(vocab_size=VOCAB_SIZE, **shape))
    else:
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, pad_token_id=0, **shape))
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.5)
    return model.eval()


def sampling_of(num_prompts: int, max_new_tokens: int = MAX_TOKENS) -> Sampling:
    prompts = [np.array([*[2, 3, 4][: 1 + number % 2], END], np.int32) for number in range(num_prompts)]
    return Sampling(prompts, max_new_tokens, [END], pad_id=0, seed=0)


def log_p(model, prompt: np.ndarray, answer: tuple[int, ...]) -> float:
    ids, labels = torch.from_numpy(prompt).long()[None], torch.tensor([answer])
    with torch.no_grad():
        if isinstance(model, T5Model):
            logits = model(input_ids=ids, labels=labels).logits
        else:
            logits = model(input_ids=torch.cat([ids, labels], 1)).logits[:, len(prompt) - 1 : -1]
    return float(logits.log_softmax(-1).gather(-1, labels[..., None]).sum())


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_near_the_exact_number(family):
    policy, reference = model_of(family, 0), model_of(family, 1)
    answers = [(END,), *((first, second) for first, second in itertools.product((0, 2, 3, 4), range(VOCAB_SIZE)))]
    difference = length = 0.0
    for prompt in sampling_of(2).prompts:
        ours = np.array([log_p(policy, prompt, answer) for answer in answers])
        assert np.exp(ours).sum() == pytest.approx(1)
        difference += np.exp(ours) @ (ours - [log_p(reference, prompt, answer) for answer in answers])
        length += np.exp(ours) @ [len(answer) for answer in answers]
    exact = difference / length
    measured = kl_per_token(policy, lambda: reference, family, sampling_of(2000), 0, ALONE)
    assert exact > 0.05
    # 4,000 answers with a deviation of about 0.7 each: 0.05 is more than four deviations of their mean.
    assert measured == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_nothing_between_a_model_and_itself_and_the_seed_decides(family):
    policy, reference = model_of(family, 0), model_of(family, 1)
    state = torch.get_rng_state()
    kl = {step: kl_per_token(policy, lambda: reference, family, sampling_of(6, 8), step, ALONE) for step in (1, 2)}
    assert torch.equal(torch.get_rng_state(), state)
    assert kl[1] != kl[2]
    assert kl_per_token(policy, lambda: reference, family, sampling_of(6, 8), 1, ALONE) == kl[1]
    assert kl_per_token(policy, lambda: policy, family, sampling_of(6, 8), 1, ALONE) == 0
