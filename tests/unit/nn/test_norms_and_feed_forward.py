"""RMSNorm and the feed-forward layers against transformers' T5, and in the half-precision types."""

import pytest
import torch
from transformers import T5Config as HuggingFaceConfig
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5DenseGatedActDense, T5LayerNorm

from fivefold.nn.feed_forward import FeedForward
from fivefold.nn.norms import RMSNorm


def test_rms_norm_equals_transformers():
    ours, theirs = RMSNorm(24), T5LayerNorm(24)
    with torch.no_grad():
        theirs.weight.copy_(torch.rand(24))
        ours.weight.copy_(theirs.weight)
    x = 3 * torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x), theirs(x))
    half = x.bfloat16()
    # transformers rounds once more, before the weight.
    torch.testing.assert_close(ours(half), theirs.bfloat16()(half), rtol=2**-7, atol=2**-7)


def test_rms_norm_gives_the_autocast_type_and_float32_statistics():
    norm = RMSNorm(24)
    x = 1e30 * torch.randn(2, 24)
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, norm(x).bfloat16())


@pytest.mark.parametrize("proj", ["relu", "gated-gelu", "gated-silu", "silu"])
def test_feed_forward_equals_transformers(proj):
    config = HuggingFaceConfig(d_model=16, d_ff=40, feed_forward_proj=proj, dropout_rate=0.0)
    theirs = (T5DenseGatedActDense if config.is_gated_act else T5DenseActDense)(config)
    ours = FeedForward(16, 40, proj.removeprefix("gated-"), is_gated=config.is_gated_act)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x))


def test_float16_products_beyond_its_range_stay_finite():
    layer = FeedForward(8, 16, "gelu", is_gated=True)
    x = torch.full((1, 8), 300.0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.fill_(1.0)
        exact = layer(x)  # 2400 * 2400 * 16, far above 65504
        with torch.autocast("cpu", torch.float16):
            out = layer(x.half())
    torch.testing.assert_close(out, exact, rtol=1e-2, atol=0)
