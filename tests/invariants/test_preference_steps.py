"""Where two roads to a preference step meet: packed and padded, accumulated and not, precomputed and live reference."""

import math

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fivefold import T5Config, T5Model
from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.objectives.answer_logps import answer_logps
from fivefold.objectives.preference import PreferenceObjective
from fivefold.objectives.settings import PreferenceLossSettings
from fivefold.training.distributed import Processes
from fivefold.training.loop import Trainer
from fivefold.training.settings import LoopSettings

VOCAB_SIZE, NUM_PAIRS = 64, 12
CAPACITY = {"t5": (24, 40), "llama": (48,)}


def pairs() -> TokenPairs:
    generator = np.random.default_rng(0)

    def texts(longest: int) -> list[np.ndarray]:
        lengths = generator.integers(1, longest, NUM_PAIRS)
        return [generator.integers(2, VOCAB_SIZE, length).astype(np.int32) for length in lengths]

    return TokenPairs(texts(12), texts(15), texts(15))


def model_of(family: str, seed: int = 0) -> T5Model | LlamaForCausalLM:
    torch.manual_seed(seed)
    if family == "t5":
        shape = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
        return T5Model(T5Config(vocab_size=VOCAB_SIZE, **shape)).double()
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, **shape)).double()


def source_of(family: str, *, is_packed: bool = False, reference_logps: np.ndarray | None = None) -> PreferenceSource:
    capacity = CAPACITY[family] if is_packed else None
    settings = {"pad_id": 0, "seed": 0, "shuffle": False, "reference_logps": reference_logps}
    return PreferenceSource(pairs(), family, capacity=capacity, **settings)


def reference_logps_of(family: str, model: torch.nn.Module) -> np.ndarray:
    """[P, 2], in float64 here, so that nothing is lost on the way."""
    with torch.no_grad():
        return answer_logps(model, tensors(source_of(family).batch(np.arange(NUM_PAIRS)))).numpy()


def step(family: str, source: PreferenceSource, rows_at_once: int, objective: PreferenceObjective) -> dict[str, float]:
    """One step on all pairs in micro-batches; what it measured, and the gradients' norm before it."""
    model = model_of(family)
    optimizer = torch.optim.SGD([{"params": list(model.parameters()), "lr": 0.0, "base_lr": 0.0}])
    alone = Processes(0, 1, torch.device("cpu"))
    settings = LoopSettings("run", num_training_steps=1, dtype="float32")
    trainer = Trainer(model, objective, optimizer, lambda _: 1.0, 0.0, settings, alone)
    rows = np.arange(source.samples_per_epoch or 0)
    batches = [tensors(source.batch(rows[at : at + rows_at_once])) for at in range(0, len(rows), rows_at_once)]
    measured = trainer.step(0, batches, want_stop=False)
    evaluated = trainer.evaluate(iter(batches))
    assert evaluated.num_terms == NUM_PAIRS
    assert evaluated.loss == pytest.approx(measured["loss"], rel=1e-6)
    # Where all margins are rounding, so is the share of those above 0.
    names = [name for name in objective.others if name != "reward_accuracy" or abs(measured["reward_margin"]) > 1e-9]
    expected = [measured[name] for name in names]
    assert [evaluated.others[name] for name in names] == pytest.approx(expected, rel=1e-5, abs=1e-9)
    return measured


LOSSES = ("sigmoid", "sigmoid_norm", "ipo", "hinge", "conservative", "robust", "simpo", "orpo")


@pytest.mark.parametrize("loss_type", LOSSES)
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_packing_and_accumulation_change_nothing(family, loss_type):
    settings = PreferenceLossSettings(loss_type)
    reference = reference_logps_of(family, model_of(family, seed=1)) if settings.needs_reference else None
    objective = PreferenceObjective(settings)
    whole = step(family, source_of(family, reference_logps=reference), NUM_PAIRS, objective)
    assert whole["grad_norm"] > 0
    names = ("loss", "grad_norm", *objective.others)
    for is_packed, rows_at_once in ((False, 1), (False, 5), (True, 2)):
        other = step(family, source_of(family, is_packed=is_packed, reference_logps=reference), rows_at_once, objective)
        # The sums over micro-batches that are logged are kept in float32.
        assert [other[name] for name in names] == pytest.approx([whole[name] for name in names], rel=2e-6)


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("family", ["t5", "llama"])
def test_a_live_reference_says_what_a_precomputed_one_said(family, is_packed):
    reference = model_of(family, seed=1)
    given = source_of(family, is_packed=is_packed, reference_logps=reference_logps_of(family, reference))
    settings = PreferenceLossSettings(sft_weight=0.3)
    precomputed = step(family, given, 3, PreferenceObjective(settings))
    live = step(family, source_of(family, is_packed=is_packed), 3, PreferenceObjective(settings, reference))
    assert live == pytest.approx(precomputed, rel=1e-9)


@pytest.mark.parametrize("family", ["t5", "llama"])
def test_training_starts_from_the_reference_at_ln_2(family):
    reference = reference_logps_of(family, model_of(family))
    measured = step(
        family, source_of(family, reference_logps=reference), 4, PreferenceObjective(PreferenceLossSettings())
    )
    assert measured["loss"] == pytest.approx(math.log(2), rel=1e-7)
    zeros = [measured[name] for name in ("rewards_chosen", "rewards_rejected", "reward_margin")]
    assert zeros == pytest.approx([0, 0, 0], abs=1e-9)
    tokens = pairs().num_tokens.mean(0)
    assert [measured["tokens_chosen"], measured["tokens_rejected"]] == pytest.approx(tokens.tolist())
    assert [measured["logp_chosen"], measured["logp_rejected"]] == pytest.approx(reference.mean(0).tolist())


def test_a_step_raises_the_chosen_answers_above_the_rejected_ones():
    family = "t5"
    model = model_of(family)
    source = source_of(family, is_packed=True, reference_logps=reference_logps_of(family, model))
    objective = PreferenceObjective(PreferenceLossSettings(), None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = tensors(source.batch(np.arange(source.samples_per_epoch or 0)))
    for _ in range(30):
        terms = objective(model, batch)
        (terms.loss_sum / NUM_PAIRS).backward()
        optimizer.step()
        optimizer.zero_grad()
    means = dict(zip(objective.others, (terms.other_sums / NUM_PAIRS).tolist(), strict=True))
    assert means["reward_accuracy"] == 1.0
    assert means["reward_margin"] > 0.5
    assert terms.loss_sum / NUM_PAIRS < 0.5
