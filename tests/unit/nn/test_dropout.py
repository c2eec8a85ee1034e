"""Our dropout zeroes as many numbers as torch's, keeps the mean, and draws the same again from the same seed."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fivefold.nn.dropout import Dropout, quicken_dropout


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_share_of_zeros_and_the_mean_are_torchs(rate, dtype):
    torch.manual_seed(0)
    dropped = Dropout(rate)(torch.ones(1000, 999, dtype=dtype))
    assert dropped.dtype == dtype
    # Five deviations of a mean of a million coins.
    assert (dropped == 0).double().mean().item() == pytest.approx(rate, abs=5e-3 * (rate * (1 - rate)) ** 0.5)
    kept = 1 / (1 - rate)
    torch.testing.assert_close(dropped[dropped != 0].unique(), torch.tensor([kept], dtype=dtype), rtol=1e-4, atol=0)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    zeros = (Dropout(0.5)(torch.ones(1_000_000)) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):  # a draw has four numbers
        assert abs((zeros[distance:] * zeros[:-distance]).mean()) < 5 * 0.25e-3


def test_the_gradient_goes_where_the_numbers_went_also_when_they_are_drawn_again():
    x = torch.ones(7, 11, requires_grad=True)
    torch.manual_seed(1)
    dropped = Dropout(0.3)(x)
    dropped.sum().backward()
    gradient, x.grad = x.grad, None
    torch.testing.assert_close(gradient, dropped.detach(), rtol=0, atol=0)
    torch.manual_seed(1)
    checkpoint(Dropout(0.3), x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(x.grad, gradient, rtol=0, atol=0)


def test_under_autocast_it_gives_what_products_take():
    with torch.autocast("cpu", torch.bfloat16):
        assert Dropout(0.1)(torch.ones(3)).dtype == torch.bfloat16


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_without_training_nothing_is_dropped_and_rates_at_the_ends_are_torchs(rate):
    x = torch.randn(5, 5)
    assert torch.equal(Dropout(rate).eval()(x), x)
    if rate in (0.0, 1.0):
        assert torch.equal(Dropout(rate)(x), nn.Dropout(rate)(x))


def test_every_dropout_inside_a_model_is_replaced():
    model = nn.Sequential(nn.Dropout(0.3), nn.ModuleDict({"default": nn.Dropout(0.2)}), nn.Identity()).eval()
    quicken_dropout(model)
    replaced = [module for module in model.modules() if isinstance(module, Dropout)]
    assert [module.p for module in replaced] == [0.3, 0.2]
    assert not any(module.training for module in replaced)
