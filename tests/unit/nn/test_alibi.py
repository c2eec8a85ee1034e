"""ALiBi against its formula, against transformers' Bloom and MPT, and where it meets attention."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.bloom.modeling_bloom import build_alibi_tensor
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from fivefold.errors import ModelError
from fivefold.nn.alibi import AdaptiveALiBi, ALiBi, alibi_bias, alibi_slopes
from fivefold.nn.attention import attention


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slopes_of_the_paper(num_heads: int) -> list[float]:
    """The recursion of the authors' program: powers of two by the formula, the rest from twice as many heads."""
    power = 2 ** int(math.log2(num_heads))
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    return slopes if power == num_heads else slopes + slopes_of_the_paper(2 * power)[::2][: num_heads - power]


def causal_weights(scores: Tensor) -> Tensor:
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, float("-inf")).softmax(-1)


@pytest.mark.parametrize("num_heads", [1, 2, 3, 6, 8, 12, 16, 20, 64])
def test_slopes_equal_the_papers(num_heads):
    expected = torch.tensor(slopes_of_the_paper(num_heads), dtype=torch.float64)
    torch.testing.assert_close(alibi_slopes(num_heads, dtype=torch.float64), expected)


def test_bias_worked_out_by_hand():
    expected = [[-1.0, -0.5, 0.0, -1.5], [-1.5, -1.0, -0.5, 0.0]]
    slopes = torch.tensor([0.5])
    relative = torch.tensor([[-2, -1, 0, 1], [-3, -2, -1, 0]])
    torch.testing.assert_close(alibi_bias(relative, slopes, 3 * slopes), torch.tensor([expected]))


def test_bias_equals_the_formula():
    bias = ALiBi(6, after_factor=0.25).double()(5, 9, first_query=2)
    assert bias.shape == (1, 6, 5, 9)
    for h, slope in enumerate(slopes_of_the_paper(6)):
        for q in range(5):
            for k in range(9):
                expected = -slope * (q + 2 - k) if k <= q + 2 else -0.25 * slope * (k - q - 2)
                assert bias[0, h, q, k].item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("num_heads", [4, 8, 12, 20])
def test_causal_weights_equal_those_of_bloom_and_mpt(num_heads):
    scores = random(1, num_heads, 30, 30).float()
    ours = causal_weights(scores + ALiBi(num_heads)(30, 30))
    # Both add slope * key position, which differs from ours by a constant a row: softmax does not see it. Their
    # scores are rounded at up to 32 (2^-20), Bloom's slopes are powers of a rounded base (30 * 16 * 2^-24).
    bloom = build_alibi_tensor(torch.ones(1, 30), num_heads, torch.float32).unflatten(0, (1, num_heads))
    torch.testing.assert_close(ours, causal_weights(scores + bloom), rtol=2**-15, atol=0)
    mpt = build_mpt_alibi_tensor(num_heads, 30)
    torch.testing.assert_close(ours, causal_weights(scores + mpt), rtol=2**-15, atol=0)


@pytest.mark.parametrize("alibi", [ALiBi(6, after_factor=0.5), AdaptiveALiBi(6, is_bidirectional=True)])
def test_a_later_query_sees_the_same_bias_as_in_the_full_matrix(alibi):
    full = alibi(50, 50)
    assert torch.equal(alibi(1, 50, first_query=49), full[:, :, 49:])
    assert torch.equal(alibi(3, 50, 20), full[:, :, 20:23])
    assert torch.equal(alibi(3, 50, query_positions=torch.arange(20, 23)), full[:, :, 20:23])
    assert alibi(0, 50).shape == (1, 6, 0, 50)


def test_packed_equals_separate():
    alibi = ALiBi(4)
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]])
    bias = alibi(5, 5, query_positions=positions, key_positions=positions)
    assert bias.shape == (2, 4, 5, 5)
    for row, cut in ((0, 3), (1, 4)):
        assert torch.equal(bias[row, :, :cut, :cut], alibi(cut, cut)[0])
        assert torch.equal(bias[row, :, cut:, cut:], alibi(5 - cut, 5 - cut)[0])


def test_only_unequal_slopes_tell_left_from_right():
    query, key, value = (random(1, 4, 9, 8, seed=seed) for seed in range(3))

    def reversed_twice(bias: Tensor) -> Tensor:
        return attention(*(x.flip(2) for x in (query, key, value)), bias=bias).flip(2)

    for alibi, is_blind in ((ALiBi(4), True), (ALiBi(4, after_factor=0.5), False)):
        bias = alibi.double()(9, 9)
        out = attention(query, key, value, bias=bias)
        assert torch.allclose(reversed_twice(bias), out) == is_blind


@pytest.mark.parametrize("is_bidirectional", [False, True])
def test_adaptive_starts_at_the_papers_and_gets_exact_gradients(is_bidirectional):
    alibi = AdaptiveALiBi(6, is_bidirectional=is_bidirectional).double()
    torch.testing.assert_close(alibi(5, 7), ALiBi(6).double()(5, 7))
    if is_bidirectional:
        halved = {"log_stretch": alibi.log_stretch - math.log(2) * (torch.arange(12) >= 6)}
        bias_after_halved = torch.func.functional_call(alibi, halved, (5, 7))
        torch.testing.assert_close(bias_after_halved, ALiBi(6, after_factor=0.5).double()(5, 7))

    def bias(log_stretch: Tensor) -> Tensor:
        return torch.func.functional_call(alibi, {"log_stretch": log_stretch}, (5, 7))

    log_stretch = (0.1 * random(*alibi.log_stretch.shape)).requires_grad_()
    assert torch.autograd.gradcheck(bias, log_stretch)
    assert torch.autograd.gradgradcheck(bias, log_stretch)


def test_adaptive_learns_through_attention_and_to_tell_left_from_right():
    alibi = AdaptiveALiBi(4, is_bidirectional=True).double()
    query, key, value = (random(2, 4, 9, 8, seed=seed) for seed in range(3))
    out = attention(query, key, value, bias=alibi(9, 9))
    (grad,) = torch.autograd.grad(out.square().sum(), alibi.log_stretch)
    weights = (query @ key.mT + alibi(9, 9)).softmax(-1)
    (expected,) = torch.autograd.grad((weights @ value).square().sum(), alibi.log_stretch)
    torch.testing.assert_close(grad, expected)
    assert ((grad[:4] - grad[4:]).abs() > 1e-6).all()


def test_adaptive_slopes_stay_positive_and_are_put_back():
    alibi = AdaptiveALiBi(4)
    assert list(alibi.state_dict()) == ["log_stretch"]
    with torch.no_grad():
        alibi.log_stretch.sub_(20.0)
    assert (alibi.slopes()[0] > 0).all()
    alibi = AdaptiveALiBi(4, is_bidirectional=True).to("meta").to_empty(device="cpu")
    alibi.reset_parameters()
    assert torch.equal(alibi(5, 5), ALiBi(4)(5, 5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [ALiBi, AdaptiveALiBi])
@pytest.mark.parametrize("num_heads", [8, 12])
def test_in_half_precision_only_the_result_is_rounded(kind, dtype, num_heads):
    exact = kind(num_heads)(700, 700)
    module = kind(num_heads).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(700, 700), exact.to(dtype))
        assert torch.equal(kind(num_heads)(700, 700), exact)


def test_fixed_biases_hold_no_values_to_save_or_to_lose():
    alibi = ALiBi(6)
    assert not alibi.state_dict()
    assert alibi.to("meta")(3, 4).device.type == "meta"
    assert torch.equal(alibi.to_empty(device="cpu")(3, 4), ALiBi(6)(3, 4))


@pytest.mark.parametrize("alibi", [ALiBi(4), AdaptiveALiBi(4)])
def test_compiles_into_one_graph(alibi):
    compiled = torch.compile(alibi, backend="eager", fullgraph=True)
    assert torch.equal(compiled(5, 9, 4), alibi(5, 9, 4))


def test_arguments_that_cannot_work():
    with pytest.raises(ModelError, match="num_heads=0"):
        ALiBi(0)
    with pytest.raises(ModelError, match="num_heads=0"):
        AdaptiveALiBi(0)
    with pytest.raises(ModelError, match=r"after_factor=-1.0"):
        ALiBi(4, after_factor=-1.0)
    with pytest.raises(ModelError, match=r"query_positions \(4,\).*for 5 tokens"):
        ALiBi(4)(5, 5, query_positions=torch.arange(4))
    with pytest.raises(ModelError, match=r"key_positions \(5,\) of torch.float32"):
        AdaptiveALiBi(4)(5, 5, key_positions=torch.arange(5.0))
