"""Preference losses against numbers worked by hand, and their derivatives against differences."""

import math

import pytest
import torch

from fivefold.errors import ConfigError
from fivefold.objectives.preference_losses import preference_loss, rewards
from fivefold.objectives.settings import PreferenceLossSettings

# One pair. The chosen answer has 4 tokens, the rejected one 2; the log-ratios to the reference are 2 and -1.
LOGPS, REFERENCE, TOKENS = [[-6.0, -5.0]], [[-8.0, -4.0]], [[4, 2]]


def loss_of(dtype: torch.dtype = torch.float64, logps: list[list[float]] = LOGPS, **settings) -> torch.Tensor:
    tensors = (torch.tensor(logps, dtype=dtype), torch.tensor(REFERENCE, dtype=dtype), torch.tensor(TOKENS))
    return preference_loss(*tensors, PreferenceLossSettings(**settings))


def minus_log_sigmoid(x: float) -> float:
    return math.log(1 + math.exp(-x))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # The margin is 0.1 * (2 - -1) = 0.3.
        ({}, minus_log_sigmoid(0.3)),
        ({"beta": 0.5}, minus_log_sigmoid(1.5)),
        # Mean log-ratios are 2 / 4 = 0.5 and -1 / 2 = -0.5.
        ({"loss_type": "sigmoid_norm"}, minus_log_sigmoid(5.0)),
        ({"loss_type": "sigmoid_norm", "beta": 2.0}, minus_log_sigmoid(2.0)),
        # (1 - 1 / 0.2)^2
        ({"loss_type": "ipo"}, 16.0),
        ({"loss_type": "hinge"}, 0.7),
        ({"loss_type": "hinge", "beta": 0.4}, 0.0),
        ({"loss_type": "conservative"}, 0.9 * minus_log_sigmoid(0.3) + 0.1 * minus_log_sigmoid(-0.3)),
        (
            {"loss_type": "robust", "label_smoothing": 0.2},
            (0.8 * minus_log_sigmoid(0.3) - 0.2 * minus_log_sigmoid(-0.3)) / 0.6,
        ),
        # Means -1.5 and -2.5; 2 * 1 - 1 = 1.
        ({"loss_type": "simpo"}, minus_log_sigmoid(1.0)),
        ({"loss_type": "simpo", "beta": 3.0, "gamma": 0.0}, minus_log_sigmoid(3.0)),
        # Odds e^-1.5 / (1 - e^-1.5) = 0.28722 and e^-2.5 / (1 - e^-2.5) = 0.08943.
        ({"loss_type": "orpo"}, 1.5 + 0.1 * minus_log_sigmoid(math.log(0.2872169 / 0.08942549))),
        ({"loss_type": "orpo", "odds_ratio_weight": 1.0}, 1.5 + minus_log_sigmoid(math.log(0.2872169 / 0.08942549))),
        # The mean negative log-likelihood of the chosen answer is 1.5.
        ({"sft_weight": 0.2}, minus_log_sigmoid(0.3) + 0.3),
        ({"loss_type": "hinge", "beta": 0.4, "sft_weight": 2.0}, 3.0),
    ],
)
def test_worked_by_hand(settings, expected):
    assert loss_of(**settings).tolist() == pytest.approx([expected], rel=1e-6)  # the odds have seven digits


def test_rewards_by_hand():
    tensors = (torch.tensor(LOGPS), torch.tensor(REFERENCE), torch.tensor(TOKENS))
    for settings, expected in (
        ({}, [0.2, -0.1]),
        ({"loss_type": "ipo", "beta": 0.4}, [0.2, -0.2]),
        ({"loss_type": "simpo"}, [-3.0, -5.0]),
        ({"loss_type": "orpo"}, [math.log(0.2872169), math.log(0.08942549)]),
    ):
        assert rewards(*tensors, PreferenceLossSettings(**settings))[0].tolist() == pytest.approx(expected, rel=1e-5)


LOSSES = [
    *({"loss_type": name} for name in ("sigmoid", "sigmoid_norm", "ipo", "hinge", "conservative", "robust", "simpo")),
    {"loss_type": "orpo"},
    {"sft_weight": 0.5},
]


@pytest.mark.parametrize("settings", LOSSES)
def test_derivatives(settings):
    """Autograd in float64 agrees with differences, and in float32 with itself in float64."""
    generator = torch.Generator().manual_seed(0)
    logps = (-10 * torch.rand(6, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    reference = -10 * torch.rand(6, 2, generator=generator, dtype=torch.float64)
    num_tokens = torch.randint(1, 9, (6, 2), generator=generator)
    chosen = PreferenceLossSettings(**settings)
    assert torch.autograd.gradcheck(lambda logps: preference_loss(logps, reference, num_tokens, chosen), logps)

    narrow = logps.detach().float().requires_grad_()
    (gradient,) = torch.autograd.grad(preference_loss(narrow, reference.float(), num_tokens, chosen).sum(), narrow)
    (wide,) = torch.autograd.grad(preference_loss(logps, reference, num_tokens, chosen).sum(), logps)
    torch.testing.assert_close(gradient.double(), wide, rtol=1e-4, atol=1e-6)  # float32 rounds to 6e-8 of about 10


@pytest.mark.parametrize("settings", LOSSES)
def test_far_ahead_and_far_behind_stay_finite(settings):
    for logps in ([[-1e-9, -1e4]], [[-1e4, -1e-9]], [[0.0, 0.0]]):
        tensor = torch.tensor(logps, requires_grad=True)
        loss = preference_loss(
            tensor, torch.tensor(REFERENCE), torch.tensor(TOKENS), PreferenceLossSettings(**settings)
        )
        loss.sum().backward()
        assert loss.isfinite().all()
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()


def test_where_the_label_says_nothing_robust_equals_sigmoid_on_average():
    """A share s of flipped labels: the mean over both labels is the loss under the true one."""
    margin, share = torch.tensor(0.7, dtype=torch.float64), 0.3
    tensors = {"reference_logps_P2": torch.zeros(1, 2, dtype=torch.float64), "num_tokens_P2": torch.ones(1, 2)}
    settings = PreferenceLossSettings("robust", beta=1.0, label_smoothing=share)
    kept, flipped = (
        preference_loss(torch.stack([sign * margin, 0 * margin])[None], settings=settings, **tensors)
        for sign in (1, -1)
    )
    assert float((1 - share) * kept + share * flipped) == pytest.approx(minus_log_sigmoid(0.7), abs=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0, but it must be above 0"),
        ({"beta": -1.0}, "beta is -1.0"),
        ({"sft_weight": -0.1}, "sft_weight is -0.1"),
        ({"loss_type": "simpo", "gamma": -1.0}, "gamma is -1.0"),
        ({"loss_type": "robust", "label_smoothing": 0.5}, "label_smoothing is 0.5, .* between 0 and 0.5"),
        ({"loss_type": "conservative", "label_smoothing": 0.0}, "say --loss_type sigmoid"),
        ({"label_smoothing": 0.2}, "--loss_type sigmoid has no label_smoothing"),
        ({"gamma": 2.0}, "--loss_type sigmoid has no gamma"),
        ({"loss_type": "orpo", "beta": 0.2}, "--loss_type orpo has no beta"),
        ({"loss_type": "orpo", "sft_weight": 0.2}, "--loss_type orpo has no sft_weight"),
        ({"odds_ratio_weight": 0.2}, "--loss_type sigmoid has no odds_ratio_weight"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=message):
        PreferenceLossSettings(**settings)
