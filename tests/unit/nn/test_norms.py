"""The normalisations against their formulas in float64, against torch and transformers, and against each other."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from fivefold.errors import ModelError
from fivefold.nn.norms import NORMS, AdaptiveRMSNorm, FastRMSNorm, GroupRMSNorm, LayerNorm, RMSNorm

DIM, COND_DIM, EPS = 24, 5, 1e-3

# Every norm as a function of x alone.
BUILDERS = {
    "rms": partial(RMSNorm, DIM, EPS),
    "fast": partial(FastRMSNorm, DIM, EPS),
    "group": partial(GroupRMSNorm, DIM, 3, EPS),
    "layer": partial(LayerNorm, DIM, EPS),
    "layer, no bias": partial(LayerNorm, DIM, EPS, bias=False),
    "adaptive": lambda: _Conditioned(AdaptiveRMSNorm(DIM, COND_DIM, EPS)),
}


class _Conditioned(nn.Module):
    """Feeds an AdaptiveRMSNorm one fixed condition, the same for every row."""

    def __init__(self, norm: AdaptiveRMSNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        cond = torch.linspace(-1, 1, COND_DIM, dtype=self.norm.scale.weight.dtype, device=x.device)
        return self.norm(x, cond.expand(x.shape[0], COND_DIM))


def _build(name: str, seed: int = 0) -> nn.Module:
    """The norm with random parameters, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    norm = BUILDERS[name]()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameter[0] = 0.0
    return norm


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _formula(norm: nn.Module, x: Tensor) -> Tensor:
    """What the docstrings write, with no torch normalisation in it."""
    if isinstance(norm, LayerNorm):
        centred = x - x.sum(-1, keepdim=True) / DIM
        out = centred / ((centred**2).sum(-1, keepdim=True) / DIM + EPS) ** 0.5 * norm.weight
        return out if norm.bias is None else out + norm.bias
    if isinstance(norm, _Conditioned):
        cond = torch.linspace(-1, 1, COND_DIM, dtype=x.dtype)
        weight = 1 + norm.norm.scale.bias + (norm.norm.scale.weight * cond).sum(-1)
    else:
        weight = norm.get_parameter("weight")
    width = DIM // norm.num_groups if isinstance(norm, GroupRMSNorm) else DIM
    runs = [run / ((run**2).sum(-1, keepdim=True) / width + EPS) ** 0.5 for run in x.split(width, -1)]
    return torch.cat(runs, -1) * weight


def _output_and_gradients(norm: nn.Module, run, x: Tensor) -> list[Tensor]:
    """The output, then the gradients of x and of every parameter under a gradient that is not constant."""
    x = x.detach().requires_grad_()
    out = run(x)
    upstream = _random(*out.shape, seed=2).to(out.dtype)
    return [out, *torch.autograd.grad(out, [x, *norm.parameters()], upstream)]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("shape", [(2, 5, DIM), (3, DIM), (2, 2, 3, DIM)])
def test_outputs_and_gradients_equal_the_formula(name, shape):
    norm = _build(name).double()
    x = 3 * _random(*shape).double()
    ours = _output_and_gradients(norm, norm, x)
    torch.testing.assert_close(ours, _output_and_gradients(norm, lambda x: _formula(norm, x), x))


@pytest.mark.parametrize("name", BUILDERS)
def test_views_give_what_their_copies_give(name):
    norm = _build(name)
    x = _random(5, DIM, 2).transpose(1, 2)
    assert not x.is_contiguous()
    ours = _output_and_gradients(norm, norm, x)
    torch.testing.assert_close(ours, _output_and_gradients(norm, norm, x.contiguous()))


@pytest.mark.parametrize("name", BUILDERS)
def test_an_empty_batch_gives_no_rows_and_zero_gradients(name):
    norm = _build(name)
    out, grad_x, *gradients = _output_and_gradients(norm, norm, torch.empty(0, 5, DIM))
    assert out.shape == grad_x.shape == (0, 5, DIM)
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_zero_rows_and_huge_rows_stay_finite(name, dtype):
    norm = _build(name)
    x = torch.stack([torch.zeros(DIM), 1e4 * _random(DIM), torch.full((DIM,), 6e4)]).to(dtype)
    # Squares in float16 would overflow. Against float64: one rounding of the result, and of a scale near 3 if in half.
    out = norm.to(dtype)(x)
    exact = _formula(norm.double(), x.double())
    assert out.dtype == dtype
    bound = max(1e-5, 4 * torch.finfo(dtype).eps)
    torch.testing.assert_close(out.double(), exact, rtol=bound, atol=bound)
    for gradient in _output_and_gradients(norm.to(dtype), norm, x):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_autocast_gives_its_dtype_and_only_one_rounding(name, dtype):
    norm, x = _build(name), _random(2, 5, DIM).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours = _output_and_gradients(norm, norm, x)
    assert [tensor.dtype for tensor in ours] == [torch.bfloat16, dtype, *[torch.float32 for _ in norm.parameters()]]
    # The linear layer that makes the adaptive scale rounds its inputs and outputs to bfloat16, the others do not.
    rounding = 2**-5 if name == "adaptive" else 2**-8
    wide = x.double()
    exact = _formula(_build(name).double(), wide)
    torch.testing.assert_close(ours[0].double(), exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("name", BUILDERS)
def test_meta_tensors_get_their_shape(name):
    out = _build(name).to("meta")(torch.empty(2, 5, DIM, dtype=torch.bfloat16, device="meta"))
    assert (out.shape, out.dtype, out.device.type) == ((2, 5, DIM), torch.bfloat16, "meta")


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("shape", [(2, 5, 1), (2, 5, DIM + 1)])
def test_another_width_is_an_error(name, shape):
    with pytest.raises(ModelError, match=rf"over {DIM} channels got a tensor of shape"):
        _build(name)(torch.ones(shape))


@pytest.mark.parametrize("norm_class", [RMSNorm, FastRMSNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norms_equal_torch_and_transformers(norm_class, dtype):
    norm = norm_class(DIM)
    t5, llama = T5LayerNorm(DIM), LlamaRMSNorm(DIM)
    for other in (norm, t5, llama):
        other.load_state_dict({"weight": _random(DIM).to(dtype)})
        other.to(dtype)
    x = 3 * _random(2, 5, DIM).to(dtype)
    ours = _output_and_gradients(norm, norm, x)
    # transformers rounds once more, before the weight; torch rounds the gradients elsewhere.
    bound = 1e-5 if dtype == torch.float32 else 2**-5
    peers = [
        _output_and_gradients(t5, t5, x),
        _output_and_gradients(llama, llama, x),
        _output_and_gradients(norm, lambda x: F.rms_norm(x, (DIM,), norm.weight, norm.eps), x),
    ]
    for theirs in peers:
        torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


def test_layer_norm_equals_torch_and_shares_its_checkpoints():
    for bias in (True, False):
        ours, theirs = LayerNorm(DIM, bias=bias), nn.LayerNorm(DIM, bias=bias)
        theirs.load_state_dict({key: _random(DIM) for key in ours.state_dict()})
        ours.load_state_dict(theirs.state_dict())
        x = _random(2, 5, DIM)
        torch.testing.assert_close(_output_and_gradients(ours, ours, x), _output_and_gradients(theirs, theirs, x))


def test_fast_gradients_are_exact_to_the_second_order():
    x = _random(3, 7).double().requires_grad_()
    norm = FastRMSNorm(7, EPS).double()
    with torch.no_grad():
        norm.weight.copy_(_random(7, seed=2)).index_fill_(0, torch.tensor([0]), 0.0)

    def run(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    weight = norm.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(run, (x, weight))
    assert torch.autograd.gradgradcheck(run, (x, weight))


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fast_equals_plain(dtype, is_autocast):
    plain, fast = _build("rms"), _build("fast")
    x = _random(2, 5, DIM).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        ours, theirs = _output_and_gradients(fast, fast, x), _output_and_gradients(plain, plain, x)
    assert [tensor.dtype for tensor in ours] == [tensor.dtype for tensor in theirs]
    assert torch.equal(ours[0], theirs[0])
    # Both work in float32 (float64 for float64; the weight's gradient is float32 then too) and round once; a sum in
    # another order may fall on the other side of that rounding.
    bound = {torch.float64: 1e-6, torch.float32: 1e-5}.get(dtype, torch.finfo(dtype).eps)
    torch.testing.assert_close(ours, theirs, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("dtype", "is_autocast", "plain_bytes", "fast_bytes"),
    [
        (torch.float32, False, 8, 4),
        (torch.float32, True, 8, 4),
        (torch.bfloat16, False, 8, 2),
        (torch.bfloat16, True, 8, 2),
    ],
)
def test_fast_keeps_less_for_the_backward_pass(dtype, is_autocast, plain_bytes, fast_bytes):
    rows, dim = 64, 512
    x = _random(rows, dim).to(dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
        plain, fast = (_saved_bytes(norm, x) for norm in (RMSNorm(dim), FastRMSNorm(dim)))
    assert fast == rows * dim * fast_bytes + rows * 4  # x in its own dtype and one float32 a row
    assert plain >= rows * dim * plain_bytes


def _saved_bytes(norm: nn.Module, x: Tensor) -> int:
    """Bytes of the different storages that autograd keeps, parameters apart."""
    kept: list[Tensor] = []  # holds them, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        norm(x)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    for parameter in norm.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_fast_under_activation_checkpointing_gives_the_same_gradients(use_reentrant):
    norm, linear = _build("fast"), nn.Linear(DIM, DIM)
    block = nn.Sequential(norm, linear)
    x = _random(2, 5, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        plain = _gradients_by_backward(block, block, x)
        again = _gradients_by_backward(block, partial(checkpoint, block, use_reentrant=use_reentrant), x)
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def _gradients_by_backward(module: nn.Module, run, x: Tensor) -> list[Tensor | None]:
    """Reentrant checkpointing refuses `torch.autograd.grad`."""
    module.zero_grad()
    x = x.detach().requires_grad_()
    run(x).float().square().sum().backward()
    return [x.grad, *(parameter.grad for parameter in module.parameters())]


def test_fast_computes_only_the_gradients_that_are_asked_for():
    norm, x = _build("fast"), _random(2, 5, DIM)
    assert not norm.requires_grad_(False)(x).requires_grad
    free = _random(2, 5, DIM).requires_grad_()
    norm(free).sum().backward()
    assert norm.get_parameter("weight").grad is None
    norm.requires_grad_()(x).sum().backward()
    weight_alone = norm.get_parameter("weight").grad
    grad_x, grad_weight = torch.autograd.grad(norm(free).sum(), [free, norm.get_parameter("weight")])
    torch.testing.assert_close([free.grad, weight_alone], [grad_x, grad_weight])


@pytest.mark.parametrize("names", [("rms", "fast"), ("fast", "rms"), ("rms", "group")])
def test_rms_norms_load_each_others_checkpoints(names):
    source, target = (_build(name, seed=seed) for seed, name in enumerate(names))
    assert isinstance(target, RMSNorm)  # what fills a fresh model's weights asks for this
    target.load_state_dict(source.state_dict())
    torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_one_group_is_rms_norm():
    plain, one = _build("rms"), GroupRMSNorm(DIM, 1, EPS)
    one.load_state_dict(plain.state_dict())
    x = _random(2, 5, DIM)
    torch.testing.assert_close(_output_and_gradients(one, one, x), _output_and_gradients(plain, plain, x))


def test_a_large_group_leaves_the_others_alone():
    norm, x = _build("group"), _random(2, 5, DIM)
    grown = torch.cat([1e3 * x[..., :8], x[..., 8:]], -1)
    assert torch.equal(norm(grown)[..., 8:], norm(x)[..., 8:])


@pytest.mark.parametrize("num_groups", [5, 48, 0, -1])
def test_groups_must_divide_the_channels(num_groups):
    with pytest.raises(ModelError, match=f"24 channels do not divide into {num_groups} groups"):
        GroupRMSNorm(DIM, num_groups)


@pytest.mark.parametrize("cond_shape", [(2, COND_DIM), (2, 5, COND_DIM)])
def test_adaptive_starts_as_rms_norm_and_can_learn(cond_shape):
    norm, x, cond = AdaptiveRMSNorm(DIM, COND_DIM), _random(2, 5, DIM), _random(*cond_shape, seed=3)
    torch.testing.assert_close(norm(x, cond), RMSNorm(DIM)(x))
    norm(x, cond).square().sum().backward()
    assert norm.scale.weight.grad is not None
    assert norm.scale.weight.grad.abs().min() > 0


def test_adaptive_takes_one_condition_for_all_positions_or_one_a_position():
    norm = AdaptiveRMSNorm(DIM, COND_DIM)
    with torch.no_grad():
        norm.scale.weight.copy_(_random(DIM, COND_DIM))
    x, cond = _random(2, 5, DIM), _random(2, COND_DIM, seed=3)
    one_a_row = norm(x, cond)
    torch.testing.assert_close(one_a_row, norm(x, cond[:, None].expand(2, 5, COND_DIM)))
    torch.testing.assert_close(one_a_row[:, 3], norm(x[:, 3], cond))
    assert not torch.allclose(one_a_row, norm(x, cond.flip(0)))


@pytest.mark.parametrize("cond_shape", [(3, COND_DIM), (2, 4, COND_DIM), (1, 5, COND_DIM), (2, COND_DIM + 1), ()])
def test_a_condition_of_another_shape_is_an_error(cond_shape):
    with pytest.raises(ModelError, match=r"give \[2, 5\] or \[2, 7, 5\]"):
        AdaptiveRMSNorm(DIM, COND_DIM)(torch.ones(2, 7, DIM), torch.ones(cond_shape))


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_of_a_configuration_is_built_from_width_and_eps(name):
    norm = NORMS[name](512, eps=1e-4)
    assert norm.eps == 1e-4
    assert "0.0001" in repr(norm)
    out = norm(_random(2, 512))
    torch.testing.assert_close(out.square().mean(-1), torch.ones(2), rtol=1e-3, atol=0)  # eps is 1e-4 of it
