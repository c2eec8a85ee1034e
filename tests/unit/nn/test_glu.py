"""Gated linear units against float64 formulas, torch's autograd and transformers' Llama and T5."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, T5Config
from transformers.models.llama.modeling_llama import LlamaMLP
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense

from fivefold.errors import ModelError
from fivefold.lowrank.targets import FAMILIES, kind_of
from fivefold.nn.gated_product import gated_product, swiglu
from fivefold.nn.glu import GLU_ACTIVATIONS, GLUVariants, SwiGLU, SwiGLUFeedForward, SwiGLUMLP
from fivefold.nn.low_rank import LowRankLinear

HALF_TYPES = [torch.float16, torch.bfloat16]


def _sigmoid(x):
    return 1 / (1 + torch.exp(-x))


FORMULAS = {
    "glu": _sigmoid,
    "bilinear": lambda x: x,
    "reglu": lambda x: x * (x > 0),
    "geglu": lambda x: x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "swiglu": lambda x: x * _sigmoid(x),
}


def _pair(*shape, dtype=torch.float64, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = scale * torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return tuple(x.to(dtype).requires_grad_() for x in draw)


def _gradients(out, inputs, seed=1):
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.autograd.grad(out, inputs, weights.to(out.dtype))


def _saved_bytes(function, *inputs):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        function(*inputs)
    return sum({x.data_ptr(): x.nbytes for x in kept}.values())


def _has_nan(tensors):
    return any(x.isnan().any() for x in tensors)


@pytest.mark.parametrize("variant", GLU_ACTIVATIONS)
def test_value_and_gradients_equal_the_formula(variant):
    gate, up = _pair(4, 6, 8)
    ours, expected = gated_product(gate, up, GLU_ACTIVATIONS[variant]), FORMULAS[variant](gate) * up
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(_gradients(ours, (gate, up)), _gradients(expected, (gate, up)))


@pytest.mark.parametrize("variant", GLU_ACTIVATIONS)
def test_first_and_second_derivatives_are_exact(variant):
    def product(gate, up):
        return gated_product(gate, up, GLU_ACTIVATIONS[variant])

    inputs = _pair(3, 4)
    assert torch.autograd.gradcheck(product, inputs)
    assert torch.autograd.gradgradcheck(product, inputs)


def test_only_one_of_the_two_needs_a_gradient():
    gate, up = _pair(3, 4)
    both = _gradients(swiglu(gate, up), (gate, up))
    torch.testing.assert_close(_gradients(swiglu(gate, up.detach()), (gate,)), both[:1])
    torch.testing.assert_close(_gradients(swiglu(gate.detach(), up), (up,)), both[1:])


def test_function_transforms_go_through():
    gate, up = (x.detach() for x in _pair(3, 4))
    slope = torch.func.vmap(torch.func.grad(lambda g, u: swiglu(g, u).sum()))(gate, up)
    torch.testing.assert_close(slope, up * _sigmoid(gate) * (1 + gate * (1 - _sigmoid(gate))))


def test_glu_is_torchs_with_the_halves_swapped():
    gate, up = _pair(3, 5)
    torch.testing.assert_close(gated_product(gate, up, GLU_ACTIVATIONS["glu"]), F.glu(torch.cat([up, gate], -1)))


def test_geglu_is_the_tanh_form():
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    from_erf = (GLU_ACTIVATIONS["geglu"](x) - F.gelu(x)).abs().max()
    assert 1e-4 < from_erf < 5e-4


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("variant", ["swiglu", "geglu"])
def test_recomputing_changes_no_bit_and_keeps_a_third_less(variant, dtype):
    activation = GLU_ACTIVATIONS[variant]
    gate, up = _pair(32, 40, dtype=dtype)
    ours, plain = gated_product(gate, up, activation), activation(gate) * up
    assert ours.dtype == dtype
    assert torch.equal(ours, plain)
    for mine, theirs in zip(_gradients(ours, (gate, up)), _gradients(plain, (gate, up)), strict=True):
        assert torch.equal(mine, theirs)
    assert _saved_bytes(lambda g, u: gated_product(g, u, activation), gate, up) == gate.nbytes + up.nbytes
    assert _saved_bytes(lambda g, u: activation(g) * u, gate, up) == 2 * gate.nbytes + up.nbytes


@pytest.mark.parametrize("variant", ["glu", "bilinear", "reglu"])
def test_the_others_keep_two_tensors_anyway(variant):
    gate, up = _pair(32, 40)
    activation = GLU_ACTIVATIONS[variant]
    assert _saved_bytes(lambda g, u: gated_product(g, u, activation), gate, up) == gate.nbytes + up.nbytes


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_half_types_are_rounded_twice_and_no_more(dtype):
    # So that there is nothing to win by widening gate and up first: the kernels compute in float32.
    gate = torch.linspace(-20, 20, 3001).to(dtype).requires_grad_()
    up = torch.full_like(gate, 1.7).requires_grad_()
    exact_gate, exact_up = gate.detach().double().requires_grad_(), up.detach().double().requires_grad_()
    exact = FORMULAS["swiglu"](exact_gate) * exact_up
    ours = swiglu(gate, up)
    # Two roundings of eps / 2 each; atol is what float16 cannot resolve near zero.
    close = {"rtol": 1.01 * torch.finfo(dtype).eps, "atol": 2e-7, "check_dtype": False}
    torch.testing.assert_close(ours, exact, **close)
    expected = torch.autograd.grad(exact.sum(), (exact_gate, exact_up))
    torch.testing.assert_close(torch.autograd.grad(ours.sum(), (gate, up)), expected, **close)


@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_extreme_inputs_give_no_nan(dtype):
    values = torch.tensor([1e4, -1e4, 6e4, -6e4, 100.0, -100.0, 1e-7, 0.0], dtype=dtype)
    gate, up = (x.requires_grad_() for x in torch.cartesian_prod(values, values).unbind(1))
    for activation in GLU_ACTIVATIONS.values():
        out = gated_product(gate, up, activation)
        assert not _has_nan([out, *torch.autograd.grad(out.sum(), (gate, up))])


def test_a_wider_product_is_finite_and_keeps_no_wider_inputs():
    gate, up = _pair(4, 8, dtype=torch.float16, scale=1e4)
    out = swiglu(gate, up, torch.float32)
    torch.testing.assert_close(out, FORMULAS["swiglu"](gate.double()) * up.double(), check_dtype=False)
    assert out.dtype == torch.float32
    assert [x.dtype for x in _gradients(out, (gate, up))] == [torch.float16] * 2
    assert _saved_bytes(lambda g, u: swiglu(g, u, torch.float32), gate, up) == gate.nbytes + up.nbytes


def test_two_types_give_the_common_one():
    gate, up = _pair(4, 8, dtype=torch.bfloat16)
    wide_up = up.detach().float().requires_grad_()
    out = swiglu(gate, wide_up)
    gate_gradient, up_gradient = torch.autograd.grad(out.sum(), (gate, wide_up))
    assert (out.dtype, gate_gradient.dtype) == (torch.float32, torch.bfloat16)
    # Not rounded to bfloat16 on the way.
    torch.testing.assert_close(up_gradient, F.silu(gate.float()))


def test_layout_and_emptiness_do_not_matter():
    gate, up = _pair(6, 5, 4)
    turned = swiglu(gate.transpose(0, 2), up.transpose(0, 2))
    torch.testing.assert_close(turned, swiglu(gate, up).transpose(0, 2))
    straight = swiglu(gate.transpose(0, 2).contiguous(), up.transpose(0, 2).contiguous())
    torch.testing.assert_close(_gradients(turned, (gate, up)), _gradients(straight, (gate, up)))
    for module in (SwiGLUFeedForward(8), SwiGLUMLP(8, [4], 8)):
        empty = torch.zeros(0, 3, 8, requires_grad=True)
        out = module(empty)
        out.sum().backward()
        assert out.shape == empty.grad.shape == (0, 3, 8)
        assert module.to("meta")(torch.zeros(2, 8, device="meta")).shape == (2, 8)


def test_swiglu_module_takes_the_gate_from_the_first_half():
    gate, up = _pair(2, 5, 7)
    torch.testing.assert_close(SwiGLU()(torch.cat([gate, up], -1)), FORMULAS["swiglu"](gate) * up)


def test_feed_forward_equals_llama():
    theirs = LlamaMLP(LlamaConfig(hidden_size=16, num_attention_heads=2, intermediate_size=40, mlp_bias=True))
    ours = SwiGLUFeedForward(16, 40, bias=True)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 7, 16, requires_grad=True)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(
        _gradients(ours(x), (x, *ours.parameters())), _gradients(theirs(x), (x, *theirs.parameters()))
    )


@pytest.mark.parametrize(("variant", "proj"), [("reglu", "relu"), ("geglu", "gelu"), ("swiglu", "silu")])
def test_variants_equal_t5(variant, proj):
    theirs = T5DenseGatedActDense(T5Config(d_model=16, d_ff=40, feed_forward_proj=f"gated-{proj}", dropout_rate=0.0))
    ours = GLUVariants(16, 40, variant)
    names = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"}
    ours.load_state_dict({f"{names[name.split('.')[0]]}.weight": w for name, w in theirs.state_dict().items()})
    x = torch.randn(3, 7, 16)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("variant", GLU_ACTIVATIONS)
def test_feed_forward_equals_the_formula(variant):
    layer = GLUVariants(8, 12, variant, bias=True).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    gate, up, down = layer.gate_proj, layer.up_proj, layer.down_proj
    hidden = FORMULAS[variant](x @ gate.weight.T + gate.bias) * (x @ up.weight.T + up.bias)
    torch.testing.assert_close(layer(x), hidden @ down.weight.T + down.bias)


def test_default_width_is_llamas_and_costs_what_a_plain_layer_costs():
    llama = LlamaConfig()
    with torch.device("meta"):
        wide = SwiGLUFeedForward(llama.hidden_size, multiple_of=256)
        assert wide.gate_proj.out_features == llama.intermediate_size
        for dim in (100, 192, 512, 768, 1024):
            size, plain = sum(p.numel() for p in SwiGLUFeedForward(dim).parameters()), 2 * dim * 4 * dim
            assert plain <= size < plain + 3 * dim * 64


def test_low_rank_conversion_finds_the_layers():
    for name, _ in SwiGLUFeedForward(8).named_children():
        assert kind_of(f"model.layers.0.mlp.{name}", FAMILIES["llama"]) == "mlp"


def test_mlp_with_one_hidden_layer_is_the_feed_forward_layer():
    mlp, layer = SwiGLUMLP(8, [12], 8), SwiGLUFeedForward(8, 12)
    first, last = mlp[0], mlp[-1]
    with torch.no_grad():
        first.weight.copy_(torch.cat([layer.gate_proj.weight, layer.up_proj.weight]))
        last.weight.copy_(layer.down_proj.weight)
    x = torch.randn(5, 8)
    torch.testing.assert_close(mlp(x), layer(x))


def test_mlp_stacks_hidden_layers():
    mlp = SwiGLUMLP(8, [6, 10], 3, bias=True).double()
    x = hidden = torch.randn(5, 8, dtype=torch.float64)
    linears = [layer for layer in mlp if isinstance(layer, torch.nn.Linear)]
    for linear in linears[:-1]:
        gate, up = (hidden @ linear.weight.T + linear.bias).chunk(2, -1)
        hidden = FORMULAS["swiglu"](gate) * up
    torch.testing.assert_close(mlp(x), hidden @ linears[-1].weight.T + linears[-1].bias)


@pytest.mark.parametrize("build", [SwiGLUFeedForward, lambda **kw: SwiGLUMLP(64, [64], 64, **kw)])
def test_dropout_is_for_training(build):
    module = build(**({"dim": 64} if build is SwiGLUFeedForward else {}), dropout_rate=0.5)
    x = torch.randn(4, 64)
    assert not torch.equal(module(x), module(x))
    module.eval()
    assert torch.equal(module(x), module(x))


def test_autocast_gives_its_type_and_nearly_the_same():
    layer = SwiGLUFeedForward(32)
    x = torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    # Three matrix products and a gate, each rounded to eight bits.
    torch.testing.assert_close(out.float(), layer(x), rtol=2**-5, atol=2**-7)


def _overflowing_layer(**kwargs):
    """Inner products of 1e8 and -1e8, whose sum is nothing: NaN where they become infinities."""
    layer = SwiGLUFeedForward(4, 8, **kwargs)
    eye = torch.eye(4)
    with torch.no_grad():
        layer.gate_proj.weight.copy_(torch.cat([eye, eye]))
        layer.up_proj.weight.copy_(torch.cat([eye, -eye]))
        layer.down_proj.weight.fill_(1.0)
    return layer, torch.tensor([[1e4, -1e4, 1e4, 1e4]], requires_grad=True)


@pytest.mark.parametrize("is_low_rank", [False, True])
@pytest.mark.parametrize("input_dtype", [torch.float16, torch.float32])
def test_float16_autocast_survives_products_beyond_its_range(input_dtype, is_low_rank):
    layer, x = _overflowing_layer()
    if is_low_rank:
        layer.down_proj, dense = LowRankLinear(8, 4, rank=1), layer.down_proj
        torch.nn.init.ones_(layer.down_proj.left.weight)
        torch.nn.init.ones_(layer.down_proj.right.weight)
        assert torch.equal(layer.down_proj.dense_weight(), dense.weight)
    with torch.autocast("cpu", torch.float16):
        out = layer(x.to(input_dtype))
    assert out.dtype == torch.float32
    assert out.abs().max() == 0
    (1e-6 * out.sum()).backward()  # a scaled loss, for the gradients are true float16 numbers
    assert all(parameter.grad.isfinite().all() for parameter in layer.parameters())
    assert x.grad.isfinite().all()


def test_float16_weights_survive_too():
    layer, x = _overflowing_layer()
    layer.half()
    out = layer(x.half())
    assert out.dtype == torch.float16
    assert out.abs().max() == 0
    plain = F.linear(F.silu(layer.gate_proj(x.half())) * layer.up_proj(x.half()), layer.down_proj.weight)
    assert plain.isnan().all()
    out.sum().backward()
    assert not _has_nan(parameter.grad for parameter in layer.parameters())


# The compiler itself makes an instance of torch.autograd.Function and is warned for it.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_compiles_without_a_graph_break(dtype):
    layer = SwiGLUFeedForward(8, 16).to(dtype)
    x = torch.randn(4, 8, dtype=dtype, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    torch.testing.assert_close(_gradients(compiled(x), (x,)), _gradients(layer(x), (x,)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SwiGLU()(torch.zeros(2, 5)), r"which is 5: make it even"),
        (lambda: GLUVariants(8, 8, "seglu"), r"'seglu' .* glu, bilinear, reglu, geglu, swiglu"),
        (lambda: SwiGLUFeedForward(0), r"dim is 0"),
        (lambda: SwiGLUFeedForward(8, -3), r"hidden_dim is -3"),
        (lambda: SwiGLUFeedForward(8, multiple_of=0), r"multiple_of is 0"),
        (lambda: SwiGLUFeedForward(8, dropout_rate=1.0), r"dropout_rate is 1.0"),
        (lambda: GLUVariants(8, 8, "glu", dropout_rate=-0.1), r"dropout_rate is -0.1"),
        (lambda: SwiGLUMLP(8, [], 8), r"no hidden_dims"),
        (lambda: SwiGLUMLP(8, [4, 0], 8), r"hidden_dims is 0"),
        (lambda: SwiGLUMLP(8, [4], 0), r"output_dim is 0"),
    ],
)
def test_impossible_arguments_are_named(build, message):
    with pytest.raises(ModelError, match=message):
        build()
