"""A packed epoch and a padded one have the same loss, gradients and counts, whatever tells positions."""

import numpy as np
import pytest
import torch

from fivefold import T5Config, T5Model
from fivefold.data.loader import tensors
from fivefold.data.pairs import PackedPairSource, PairSource
from fivefold.objectives.seq2seq import Seq2SeqObjective
from fivefold.objectives.settings import LossSettings


@pytest.mark.parametrize("position", ["relative_bias", "rope", "alibi", "adaptive_alibi", "none"])
def test_packed_equals_padded(position):
    generator = np.random.default_rng(0)
    prompts, responses = (
        [generator.integers(2, 60, generator.integers(0, 20)) for _ in range(24)] for _ in ("prompts", "responses")
    )
    settings = {"input_length": 32, "target_length": 24, "eos_id": 1, "pad_id": 0, "seed": 0}
    torch.manual_seed(0)
    model = T5Model(
        T5Config(
            vocab_size=64, d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4, dropout_rate=0.0, position=position
        )
    ).double()
    objective = Seq2SeqObjective(LossSettings(z_loss=1e-3, label_smoothing=0.1))
    results = []
    for source_class in (PairSource, PackedPairSource):
        source = source_class(prompts, responses, **settings)
        batch = tensors(source.batch(np.arange(source.samples_per_epoch)))
        terms = objective(model, batch)
        gradients = torch.autograd.grad(terms.loss_sum, list(model.parameters()))
        results.append((objective.count(batch), objective.num_tokens(batch), *terms, *gradients))
        num_rows = len(batch["input_ids"])
    assert num_rows < 20
    for padded, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, padded)
