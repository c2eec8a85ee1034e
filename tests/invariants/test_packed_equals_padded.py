"""A packed epoch and a padded one have the same loss, gradients and counts, whatever tells positions."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fivefold import T5Config, T5Model
from fivefold.data.corruption import SpanCorruption
from fivefold.data.denoisers import UL2, Denoiser
from fivefold.data.documents import DocumentSource
from fivefold.data.examples import ExampleSource, PackedSource
from fivefold.data.loader import tensors
from fivefold.data.pairs import PairSource
from fivefold.data.source import Source
from fivefold.data.tokens import TokenShards
from fivefold.objectives.objective import TokenCounts
from fivefold.objectives.seq2seq import Seq2SeqObjective
from fivefold.objectives.settings import LossSettings

ROW = (32, 24)


def pairs() -> ExampleSource:
    generator = np.random.default_rng(0)
    prompts, responses = (
        [generator.integers(2, 60, generator.integers(0, 20)) for _ in range(24)] for _ in ("prompts", "responses")
    )
    return PairSource(prompts, responses, input_length=32, target_length=24, eos_id=1, pad_id=0, seed=0)


def corrupted(*denoisers: Denoiser) -> ExampleSource:
    generator = np.random.default_rng(0)
    tokens = TokenShards.of_documents([generator.integers(2, 50, generator.integers(1, 40)) for _ in range(24)])
    limits = {"input_length": 32, "target_length": 24}
    corruption = SpanCorruption(denoisers, **limits, seed=0, sentinels=np.arange(63, 50, -1), eos_id=1)
    return DocumentSource(tokens, corruption, pad_id=0, seed=0)


def documents() -> ExampleSource:
    return corrupted(Denoiser(0.15, 3.0))


def ul2() -> ExampleSource:
    return corrupted(*UL2)


class Epoch(NamedTuple):
    """What an epoch in one batch comes to."""

    num_terms: int
    tokens: TokenCounts
    tensors: list[Tensor]
    """Loss with and without what is added to it, and the gradients."""


def epoch_of(source: Source, position: str, dtype: torch.dtype) -> Epoch:
    torch.manual_seed(0)
    model = T5Model(
        T5Config(
            vocab_size=64, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0, position=position
        )
    ).to(dtype=dtype)
    objective = Seq2SeqObjective(LossSettings(z_loss=1e-3, label_smoothing=0.1))
    batch = tensors(source.batch(np.arange(source.samples_per_epoch or 0)))
    terms = objective(model, batch)
    gradients = torch.autograd.grad(terms.loss_sum, list(model.parameters()))
    return Epoch(objective.count(batch), objective.count_tokens(batch), [terms.loss_sum, terms.nll_sum, *gradients])


@pytest.mark.parametrize("examples", [pairs, documents, ul2])
@pytest.mark.parametrize("position", ["relative_bias", "rope", "alibi", "adaptive_alibi", "none"])
def test_packed_equals_padded(examples, position):
    packed_source = PackedSource(examples(), ROW)
    padded, packed = (epoch_of(source, position, torch.float64) for source in (examples(), packed_source))
    torch.testing.assert_close(packed.tensors, padded.tensors)
    assert packed.num_terms == padded.num_terms == padded.tokens.targets == packed.tokens.targets
    assert packed.tokens.total == padded.tokens.total
    for tokens in (padded.tokens, packed.tokens):
        shares = (tokens.inputs / tokens.input_positions, tokens.targets / tokens.target_positions)
        assert tuple(tokens.nonpadding_fracs.values()) == shares
    assert packed.tokens.input_positions + packed.tokens.target_positions < 0.9 * (
        padded.tokens.input_positions + padded.tokens.target_positions
    )


@pytest.mark.parametrize("examples", [pairs, documents, ul2])
def test_in_float32_they_differ_by_rounding_alone(examples):
    padded, packed = (
        epoch_of(source, "relative_bias", torch.float32) for source in (examples(), PackedSource(examples(), ROW))
    )
    for ours, theirs in zip(packed.tensors, padded.tensors, strict=True):
        # Sums over the same tokens in another order; each of the two lies up to 1e-6 from the sum in float64.
        assert (ours - theirs).abs().max() <= 2e-6 * theirs.abs().max()
