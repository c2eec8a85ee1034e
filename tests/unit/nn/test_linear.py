"""The linear layer against torch's: the same parameters, results and gradients, whichever kernel multiplies."""

import pytest
import torch
from torch import nn

from fivefold.nn.linear import Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 48), (16, 1, 48), (3, 7, 48), (48,), (0, 48)])
def test_results_are_those_of_the_float64_product(shape, bias, dtype):
    torch.manual_seed(0)
    ours, theirs = Linear(48, 80, bias=bias).to(dtype), nn.Linear(48, 80, bias=bias).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(shape).to(dtype)
    exact = nn.Linear(48, 80, bias=bias).double()
    exact.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        got, expected = ours(x), exact(x.double())
    assert got.dtype == dtype
    # bfloat16 rounds the sum once; float32 sums 48 terms in an order of its own
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2**-8, torch.float64: 1e-14}[dtype]
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_strided_inputs_and_training_are_torchs():
    layer = Linear(8, 5, bias=False)
    x = torch.randn(6, 8, 4).transpose(1, 2).requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), x @ layer.weight.mT)
    grads = torch.autograd.grad(layer(x).square().sum(), (x, layer.weight))
    expected = torch.autograd.grad((x @ layer.weight.mT).square().sum(), (x, layer.weight))
    for ours, theirs in zip(grads, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_autocast_decides_the_dtype():
    layer, x = Linear(8, 5), torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
