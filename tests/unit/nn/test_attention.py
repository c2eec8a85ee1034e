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
    for weights in (1, 3 * 37 * 53, 6 * 37 * 53, 10**9):  # one head, heads that divide 5, one row, all rows
        monkeypatch.setattr(module, "_TILE_BYTES", 4 * weights)
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


def test_dropout_drops_the_same_weights_forward_and_backward():
    q, k, _, bias, _ = _inputs(torch.float64, query_len=9, key_len=12, dim=4)
    bias = bias.detach().masked_fill(torch.rand(bias.shape) < 0.2, float("-inf")).requires_grad_()

    def dropped(q, k, v, bias):
        torch.manual_seed(0)
        return attention(q, k, v, bias=bias, dropout_rate=0.4)

    weights = (q @ k.mT + bias).softmax(-1)
    identity = torch.eye(12, dtype=torch.float64).expand(3, 5, 12, 12)
    seen = torch.cat([dropped(q, k, part, bias) for part in identity.split(4, -1)], -1)  # the weights themselves
    kept = seen != 0
    torch.testing.assert_close(seen, weights * kept / 0.6)
    share = kept.sum() / (weights != 0).sum()
    assert abs(share - 0.6) < 4 * (0.4 * 0.6 / 1000) ** 0.5  # about 1,200 weights: four deviations
    v = torch.randn(3, 5, 12, 4, dtype=torch.float64).requires_grad_()
    ours = torch.autograd.grad(dropped(q, k, v, bias).square().sum(), (q, k, v, bias))
    theirs = torch.autograd.grad((weights * kept / 0.6 @ v).square().sum(), (q, k, v, bias))
    for got, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got, expected)


def test_without_gradient_and_without_bias_it_is_torchs_kernel():
    q, k, v, bias, _ = _inputs(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(
            attention(q, k, v, bias=bias), F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        )
        torch.testing.assert_close(attention(q, k, v), F.scaled_dot_product_attention(q, k, v, scale=1.0))


def _random_case(seed):
    """Shapes, masks and a bias drawn at random; every query of some cases sees nothing."""
    generator = torch.Generator().manual_seed(seed)

    def pick(*choices):
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    batch, key_heads, shared, dim = pick(1, 2, 3), pick(1, 2), pick(1, 2, 3), pick(2, 5, 8)
    is_causal, first_query = pick(False, True), 0
    key_len = pick(1, 7, 19, 40)
    query_len = key_len
    if is_causal and pick(False, True):
        first_query = int(torch.randint(key_len, (), generator=generator))
        query_len = key_len - first_query
    elif not is_causal:
        query_len = pick(1, 6, 33)
    heads = key_heads * shared
    kind = pick("none", "shared", "batch", "head")
    bias_shape = {"shared": (1, heads), "batch": (batch, heads), "head": (1, 1)}.get(kind)
    tensors = [
        torch.randn(batch, count, length, dim, dtype=torch.float64, generator=generator).requires_grad_()
        for count, length in ((heads, query_len), (key_heads, key_len), (key_heads, key_len))
    ]
    bias = None
    if bias_shape:
        bias = torch.randn(*bias_shape, query_len, key_len, dtype=torch.float64, generator=generator).requires_grad_()
        tensors.append(bias)
    masks = {"is_causal": is_causal, "first_query": first_query}
    if pick(False, True):
        masks["key_mask"] = torch.rand(batch, key_len, generator=generator) < pick(0.2, 0.7)
    if pick(False, True):
        masks["query_segments"] = torch.randint(1, 4, (batch, query_len), generator=generator)
        masks["key_segments"] = torch.randint(1, 4, (batch, key_len), generator=generator)
    return tensors, bias, masks, pick(1.0, 0.4)


def _general_formula(
    q, k, v, bias, scale, is_causal, first_query, key_mask=None, query_segments=None, key_segments=None
):
    shared = q.shape[1] // k.shape[1]
    scores = scale * q @ k.repeat_interleave(shared, 1).mT
    if bias is not None:
        scores = scores + bias
    visible = torch.ones(q.shape[0], 1, q.shape[2], k.shape[2], dtype=torch.bool)
    if is_causal:
        visible &= torch.arange(k.shape[2]) <= torch.arange(q.shape[2])[:, None] + first_query
    if key_mask is not None:
        visible &= key_mask[:, None, None]
    if query_segments is not None:
        visible &= (query_segments[:, :, None] == key_segments[:, None])[:, None]
    # A row of -inf has no softmax: its scores are set to anything finite, its weights to zero.
    weights = scores.masked_fill(~visible, -1e30).softmax(-1) * visible
    return weights @ v.repeat_interleave(shared, 1)


@pytest.mark.parametrize("part", range(10))
def test_all_kernels_agree_with_the_formula_on_random_cases(part):
    for seed in range(50 * part, 50 * part + 50):
        tensors, bias, masks, scale = _random_case(seed)
        expected = _general_formula(*tensors[:3], bias, scale, **masks)
        signs = torch.randn(expected.shape, dtype=expected.dtype, generator=torch.Generator().manual_seed(seed))
        expected_grads = torch.autograd.grad(expected, tensors, signs, allow_unused=True)
        for kernel in ("auto", "sdpa", "tiled", "flash", "memory_efficient"):
            if kernel == "tiled" and bias is not None and bias.shape[:2] != (1, tensors[0].shape[1]):
                continue
            got = attention(*tensors[:3], bias=bias, scale=scale, kernel=kernel, **masks)
            grads = torch.autograd.grad(got, tensors, signs, allow_unused=True)
            for ours, theirs in zip((got, *grads), (expected, *expected_grads), strict=True):
                torch.testing.assert_close(ours, theirs, msg=f"{kernel} in case {seed}")
