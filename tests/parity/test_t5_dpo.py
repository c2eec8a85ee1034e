"""DPO of a T5 against four passes of transformers' T5, as one would write it down: loss and gradients in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import T5Config as HuggingFaceT5Config
from transformers import T5ForConditionalGeneration

from fivefold import T5Config, T5Model
from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.objectives.preference import PreferenceObjective
from fivefold.objectives.settings import PreferenceLossSettings

NUM_PAIRS, BETA = 8, 0.3


def ours(seed: int) -> T5Model:
    torch.manual_seed(seed)
    shape = {"d_model": 24, "d_kv": 6, "d_ff": 32, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
    return T5Model(T5Config(vocab_size=64, **shape)).double()


def theirs(model: T5Model) -> T5ForConditionalGeneration:
    config = HuggingFaceT5Config(**(model.config.to_dict() | {"model_type": "t5"}))
    twin = T5ForConditionalGeneration(config).double()
    twin.load_state_dict(model.state_dict(), strict=False)
    return twin


def padded(rows: list[np.ndarray], fill: int) -> torch.Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


@pytest.mark.parametrize("capacity", [None, (24, 40)], ids=["padded", "packed"])
def test_loss_and_gradients_of_four_passes(capacity):
    generator = np.random.default_rng(0)
    prompts, chosen, rejected = (
        [generator.integers(2, 64, length).astype(np.int32) for length in generator.integers(1, longest, NUM_PAIRS)]
        for longest in (12, 15, 15)
    )
    policy, reference = ours(0), ours(1)
    their_policy, their_reference = theirs(policy), theirs(reference)

    def logps(model: T5ForConditionalGeneration, answers: list[np.ndarray]) -> torch.Tensor:
        labels, ids = padded(answers, -100), padded(prompts, 0)
        logits = model(input_ids=ids, attention_mask=(ids != 0).long(), labels=labels).logits
        of_labels = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        return (of_labels * (labels != -100)).sum(-1)

    with torch.no_grad():
        reference_ratio = logps(their_reference, chosen) - logps(their_reference, rejected)
    ratio = logps(their_policy, chosen) - logps(their_policy, rejected)
    expected = -F.logsigmoid(BETA * (ratio - reference_ratio)).sum()
    expected.backward()

    pairs = TokenPairs(prompts, chosen, rejected)
    source = PreferenceSource(pairs, "t5", pad_id=0, seed=0, capacity=capacity)
    objective = PreferenceObjective(PreferenceLossSettings(beta=BETA), reference)
    loss = objective(policy, tensors(source.batch(np.arange(source.samples_per_epoch or 0)))).loss_sum
    loss.backward()
    # transformers' T5 computes its norms in float32 whatever its weights are.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    gradients = {name: parameter.grad for name, parameter in their_policy.named_parameters()}
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
