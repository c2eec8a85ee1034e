"""Log-probabilities of answers in shared rows against one ordinary pass for each answer, in float64."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM, T5ForConditionalGeneration
from transformers import T5Config as HuggingFaceT5Config

from fivefold import T5Config, T5Model
from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.errors import ModelError
from fivefold.lowrank.convert import convert
from fivefold.objectives.answer_logps import answer_logps, check_answers_apart

VOCAB_SIZE = 64
CAPACITY = {"t5": (24, 40), "llama": (48,)}


def pairs(num_pairs: int = 9) -> TokenPairs:
    generator = np.random.default_rng(0)

    def texts(longest: int) -> list[np.ndarray]:
        lengths = generator.integers(1, longest, num_pairs)
        return [generator.integers(2, VOCAB_SIZE, length).astype(np.int32) for length in lengths]

    return TokenPairs(texts(12), texts(15), texts(15))


def t5(position: str = "relative_bias", **changes) -> T5Model:
    torch.manual_seed(0)
    shape = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    return T5Model(T5Config(vocab_size=VOCAB_SIZE, position=position, **(shape | changes))).double()


def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, num_key_value_heads=2, **shape)).double()


def one_by_one(model, prompt: np.ndarray, answer: np.ndarray) -> torch.Tensor:
    """The log-probability of an answer in a pass of its own."""
    prompt_ids, answer_ids = (torch.from_numpy(ids).long()[None] for ids in (prompt, answer))
    if isinstance(model, LlamaForCausalLM):
        logits = model(input_ids=torch.cat([prompt_ids, answer_ids], 1)).logits[:, len(prompt) - 1 : -1]
    else:
        logits = model(input_ids=prompt_ids, labels=answer_ids).logits
    return logits.log_softmax(-1).gather(-1, answer_ids[..., None]).sum()


def expected_logps(model, pairs: TokenPairs) -> torch.Tensor:
    return torch.stack(
        [
            torch.stack([one_by_one(model, prompt, chosen), one_by_one(model, prompt, rejected)])
            for prompt, chosen, rejected in zip(pairs.prompts, pairs.chosen, pairs.rejected, strict=True)
        ]
    )


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("build", [t5, llama, lambda: t5("rope"), lambda: t5("alibi"), lambda: t5(attention="sdpa")])
def test_shared_rows_equal_separate_passes(build, is_packed):
    model = build()
    family = "llama" if isinstance(model, LlamaForCausalLM) else "t5"
    some = pairs()
    source = PreferenceSource(some, family, pad_id=0, seed=0, capacity=CAPACITY[family] if is_packed else None)
    rows = np.arange(source.samples_per_epoch or 0)
    assert (len(rows) < len(some)) == is_packed

    logps = answer_logps(model, tensors(source.batch(rows)))
    expected = expected_logps(model, some)[np.concatenate(source.pairs_of(rows))]
    torch.testing.assert_close(logps, expected, rtol=1e-10, atol=1e-10)

    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad((logps * weights).sum(), list(model.parameters()))
    theirs = torch.autograd.grad((expected * weights).sum(), list(model.parameters()))
    # transformers' LLaMA computes its norms in float32, whose sums over the rows' tokens come in another order.
    rounding = {"rtol": 1e-4, "atol": 1e-5} if family == "llama" else {"rtol": 1e-8, "atol": 1e-10}
    torch.testing.assert_close(ours, theirs, **rounding)


def test_t5_of_transformers_says_the_same():
    model = t5()
    config = model.config.to_dict() | {"model_type": "t5"}
    theirs = T5ForConditionalGeneration(HuggingFaceT5Config(**config)).double().eval()
    theirs.load_state_dict(model.state_dict(), strict=False)
    some = pairs(4)
    logps = answer_logps(
        model, tensors(PreferenceSource(some, "t5", pad_id=0, seed=0, shuffle=False).batch(np.arange(4)))
    )
    torch.testing.assert_close(logps, expected_logps(theirs, some))


def test_only_positions_with_a_label_go_through_the_output_layer():
    model, some = llama(), pairs()
    seen = []
    model.lm_head.register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    batch = tensors(PreferenceSource(some, "llama", pad_id=0, seed=0).batch(np.arange(9)))
    answer_logps(model, batch)
    assert seen == [(int(some.num_tokens.sum()), VOCAB_SIZE)]
    assert model(input_ids=batch["input_ids"]).logits.dim() == 3  # as before


def test_low_rank_models_too():
    model = t5()
    convert(model, scope="all", attn_rank=4, mlp_rank=4, init="spectral")
    some = pairs(3)
    logps = answer_logps(
        model, tensors(PreferenceSource(some, "t5", pad_id=0, seed=0, shuffle=False).batch(np.arange(3)))
    )
    torch.testing.assert_close(logps, expected_logps(model, some))


def test_an_answer_knows_nothing_of_the_other_one():
    """Whatever the rejected answers are, the chosen ones' log-probabilities keep every bit's meaning."""
    some, model = pairs(), llama()
    others = TokenPairs(some.prompts, some.chosen, [(tokens + 7) % 60 + 2 for tokens in some.rejected])
    before, after = (
        answer_logps(model, tensors(PreferenceSource(each, "llama", pad_id=0, seed=0).batch(np.arange(9))))
        for each in (some, others)
    )
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=1e-12, atol=1e-12)
    assert (after[:, 1] != before[:, 1]).all()


def test_a_decoder_without_masks_is_refused():
    check_answers_apart(llama())
    shape = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "vocab_size": VOCAB_SIZE}
    with pytest.raises(ModelError, match="MambaForCausalLM reads an answer otherwise when another one stands"):
        check_answers_apart(MambaForCausalLM(MambaConfig(**shape)))
