"""The attention layers against torch's own layer and against the formula written out in float64."""

import pytest
import torch
from torch import nn

from fivefold.errors import ModelError
from fivefold.nn import (
    ALiBiAttention,
    CausalALiBiAttention,
    FlashAttention,
    FlashMHA,
    MemoryEfficientAttention,
    MultiHeadAttention,
    RoPEAttention,
)
from fivefold.nn.alibi import alibi_slopes

_B, _T, _C, _H, _D = 3, 11, 24, 4, 6


def _x(tokens: int = _T) -> torch.Tensor:
    return torch.randn(_B, tokens, _C, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))


def _built(layer_class, **settings):
    torch.manual_seed(0)
    layer = layer_class(_C, _H, **settings).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "norm" in name or "position" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return layer


def _key_mask() -> torch.Tensor:
    mask = torch.ones(_B, _T, dtype=torch.bool)
    mask[1, 7:] = False
    return mask


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("is_causal", [False, True])
def test_plain_layer_is_torchs(is_causal, bias):
    ours = _built(MultiHeadAttention, is_causal=is_causal, bias=bias)
    theirs = nn.MultiheadAttention(_C, _H, bias=bias, batch_first=True).double()
    theirs.in_proj_weight.data = torch.cat([ours.q_proj.weight, ours.k_proj.weight, ours.v_proj.weight]).detach()
    theirs.out_proj.weight.data = ours.o_proj.weight.detach()
    if bias:
        theirs.in_proj_bias.data = torch.cat([ours.q_proj.bias, ours.k_proj.bias, ours.v_proj.bias]).detach()
        theirs.out_proj.bias.data = ours.o_proj.bias.detach()
    x = _x()
    future = torch.ones(_T, _T, dtype=torch.bool).triu(1) if is_causal else None
    expected, _ = theirs(x, x, x, key_padding_mask=~_key_mask(), attn_mask=future, need_weights=False)
    torch.testing.assert_close(ours(x, key_mask=_key_mask()), expected)
    if not is_causal:
        memory = _x(5)
        torch.testing.assert_close(ours(x, memory), theirs(x, memory, memory, need_weights=False)[0])


def _formula(layer, x, before, after, visible, shared):
    """Head by head: rotation by complex numbers if there is one, slopes if there are, scores, softmax."""
    outputs = []
    for head in range(_H):
        mine, theirs = (slice(i * _D, (i + 1) * _D) for i in (head, head // shared))
        q, k, v = x @ layer.q_proj.weight[mine].T, x @ layer.k_proj.weight[theirs].T, x @ layer.v_proj.weight[theirs].T
        if isinstance(layer.q_norm, nn.Module) and hasattr(layer.q_norm, "weight"):
            q, k = (
                y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
                for y, norm in ((q, layer.q_norm), (k, layer.k_norm))
            )
        if isinstance(layer, RoPEAttention):
            turn = torch.exp(1j * torch.arange(_T)[:, None] * 10000.0 ** (-torch.arange(0, _D, 2) / _D).double())
            q, k = (torch.complex(y[..., : _D // 2], y[..., _D // 2 :]) * turn for y in (q, k))
            scores = (q @ k.mH).real
        else:
            scores = q @ k.mT
        distance = torch.arange(_T)[None, :] - torch.arange(_T)[:, None]
        bias = torch.where(distance < 0, before[head] * distance, -after[head] * distance)
        scores = (scores / _D**0.5 + bias).masked_fill(~visible, float("-inf"))
        outputs.append(scores.softmax(-1) @ v)
    return torch.cat(outputs, -1) @ layer.o_proj.weight.T


@pytest.mark.parametrize(
    ("layer_class", "settings"),
    [
        (MultiHeadAttention, {"num_key_value_heads": 2, "qk_norm": True}),
        (RoPEAttention, {}),
        (RoPEAttention, {"is_causal": True, "num_key_value_heads": 1}),
        (ALiBiAttention, {}),
        (ALiBiAttention, {"is_adaptive": True}),
        (CausalALiBiAttention, {}),
        (CausalALiBiAttention, {"is_adaptive": True, "num_key_value_heads": 2}),
        (FlashMHA, {}),
        (FlashMHA, {"is_causal": True, "qk_norm": True}),
    ],
)
def test_outputs_and_gradients_equal_the_formula(layer_class, settings):
    layer = _built(layer_class, **settings)
    slopes = alibi_slopes(_H, dtype=torch.float64) if "ALiBi" in layer_class.__name__ else torch.zeros(_H).double()
    before, after = slopes, slopes / 2
    if settings.get("is_adaptive"):
        stretch = layer.position.log_stretch.view(-1, _H).exp()
        before, after = slopes * stretch[0], slopes * stretch[-1]
    segments = torch.tensor([[1] * 5 + [2] * 6] * _B)
    visible = (segments[:, :, None] == segments[:, None, :]) & _key_mask()[:, None, :]
    visible[1, 5:, 5:7] |= segments[1, 5:, None] == 2
    if layer.is_causal:
        visible = visible & torch.ones(_T, _T, dtype=torch.bool).tril()
    x = _x()
    expected = _formula(layer, x, before, after, visible, _H // settings.get("num_key_value_heads", _H))
    got = layer(x, key_mask=_key_mask(), segments=segments)
    torch.testing.assert_close(got, expected)
    signs = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.autograd.grad((y * signs).sum(), list(layer.parameters())) for y in (got, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layer_class", [FlashAttention, MemoryEfficientAttention])
@pytest.mark.parametrize("is_causal", [False, True])
def test_layers_without_parameters_are_torchs_kernel(layer_class, is_causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 40, 8, dtype=torch.float64, generator=generator) for _ in range(3))
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    torch.testing.assert_close(layer_class(is_causal=is_causal, block_size=16)(q, k, v), expected)
    expected = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=is_causal, scale=0.5)
    torch.testing.assert_close(layer_class(0.5, is_causal=is_causal)(q, k, v), expected)


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: MultiHeadAttention(24, 5), "24 channels do not divide into 5 heads"),
        (lambda: MultiHeadAttention(24, 4, num_key_value_heads=3), "the second must divide the first"),
        (lambda: MultiHeadAttention(24, 4, kernel="cutlass"), "no attention kernel 'cutlass'"),
        (lambda: MultiHeadAttention(24, 4).double()(_x(), _x(), segments=torch.ones(_B, _T)), "give both or none"),
        (lambda: RoPEAttention(12, 4), "RoPE"),
        (lambda: RoPEAttention(24, 4, max_seq_length=8).double()(_x()), "11 positions, but is trained for 8"),
    ],
)
def test_mistakes_are_one_sentence(build, sentence):
    with pytest.raises(ModelError) as caught:
        build()
    assert sentence in str(caught.value)
