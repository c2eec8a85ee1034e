"""The tiled kernel against the formula written out in float64, and against torch's own kernel."""

import pytest
import torch
import torch.nn.functional as F

from fivefold.nn import tiled_attention as module
from fivefold.nn.attention import attention


def _inputs(dtype, query_len=37, key_len=53, batch=3, heads=5, dim=8):
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, heads, query_len, dim), (batch, heads, key_len, dim), (batch, heads, key_len, dim)]
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes)
    bias = torch.randn(1, heads, query_len, key_len, generator=generator).to(dtype).requires_grad_()
    grad = torch.randn(batch, heads, query_len, dim, generator=generator).to(dtype)
    return q, k, v, bias, grad


def _formula(q, k, v, bias, key_mask, scale):
    scores = scale * q @ k.mT + bias
    if key_mask is not None:
        scores = scores.masked_fill(~key_mask[:, None, None, :], float("-inf"))
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_gradients_equal_the_formula(masked, causal, scale):
    q, k, v, bias, grad = _inputs(torch.float64, query_len=53)
    key_mask = torch.rand(3, 53, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    if key_mask is not None:
        key_mask[:, 0] = True
    hidden = torch.ones(53, 53, dtype=torch.bool).triu(1) if causal else torch.zeros(53, 53, dtype=torch.bool)
    leaves = (q, k, v, bias)

    results = []
    for function in (_formula, attention):
        masked_bias = bias.masked_fill(hidden, float("-inf"))
        out = function(q, k, v, bias=masked_bias, key_mask=key_mask, scale=scale)
        results.append((out, *torch.autograd.grad(out, leaves, grad)))

    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_tile_size_does_not_matter(monkeypatch):
    q, k, v, bias, grad = _inputs(torch.float32)
    results = []
    for scores in (1, 2 * 37 * 53, 10**9):
        monkeypatch.setattr(module, "_TILE_SCORES", scores)
        out = attention(q, k, v, bias=bias)
        results.append((out, *torch.autograd.grad(out, (q, k, v, bias), grad)))
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, theirs)


def test_bfloat16_is_as_close_to_float64_as_the_formula_in_bfloat16():
    q, k, v, bias, grad = _inputs(torch.bfloat16, query_len=128, key_len=128, dim=64)
    leaves = (q, k, v, bias)
    results = []
    for inputs, function in ((tuple(x.double() for x in leaves), _formula), (leaves, attention), (leaves, _formula)):
        out = function(*inputs[:3], bias=inputs[3], key_mask=None, scale=1.0)
        results.append((out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))))
    for truth, ours, formula in zip(*results, strict=True):
        error, reference = ((x.double() - truth).norm() for x in (ours, formula))
        assert error <= 1.1 * reference  # a tenth for the different order of rounding


@pytest.mark.parametrize("needs_grad", [True, False])
def test_a_query_that_sees_no_key_gets_zeros_and_gives_no_gradient(needs_grad):
    q, k, v, bias, grad = _inputs(torch.float32)
    bias = bias.detach().requires_grad_(needs_grad)
    key_mask = torch.ones(3, 53, dtype=torch.bool)
    key_mask[1] = False
    out = attention(q, k, v, bias=bias, key_mask=key_mask)
    assert (out[1] == 0).all()
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out, (q, k, v), grad):
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()


def test_without_gradient_and_without_bias_it_is_torchs_kernel():
    q, k, v, bias, _ = _inputs(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            attention(q, k, v, bias=bias), F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        )
        torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=1.0))
