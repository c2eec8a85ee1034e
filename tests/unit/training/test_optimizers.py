import copy
import math

import pytest
import torch
from torch import nn

from fivefold.errors import ConfigError, ModelError
from fivefold.lowrank.convert import convert
from fivefold.lowrank.settings import LoroSettings
from fivefold.nn.low_rank import LowRankLinear
from fivefold.optim.adamw_scaled import AdamWScaled, adamw_scaled_update, parameter_rms
from fivefold.t5.config import T5Config
from fivefold.t5.model import T5Model
from fivefold.training.optimizers import FACTOR_OPTIMIZERS, build_optimizer, parameter_groups, set_lr, state_elements
from fivefold.training.settings import CUSTOMARY_LR, LORA_OPTIMIZERS, MOMENTUM_OPTIMIZERS, OptimizerSettings

STEPS = 5
WITHOUT_ADAPTER = [name for name in CUSTOMARY_LR if name not in LORA_OPTIMIZERS]  # see test_lora_optimizers.py


class TinyNet(nn.Module):
    """A matrix, a norm weight, a bias, a relative-position table and a frozen matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.wi = nn.Linear(6, 4)
        self.layer_norm = nn.LayerNorm(4, bias=False)
        self.relative_attention_bias = nn.Embedding(8, 2)
        self.frozen = nn.Linear(3, 3, bias=False).requires_grad_(False)


class TinyFactoredNet(TinyNet):
    """The same with factors instead of the matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.wi = LowRankLinear(6, 4, 4, bias=True)


def net_for(name: str) -> TinyNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyFactoredNet() if name in ("loro_adamw", "loro_muon", "spectron") else TinyNet()


def tiny_t5() -> T5Model:
    return T5Model(T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2))


def start_and_gradients(shape: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(len(shape))
    start = torch.randn(shape, generator=generator, dtype=torch.float64)
    return start, [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(STEPS)]


def run_optimizer(optimizer_of, start, gradients, dtype) -> torch.Tensor:
    param = nn.Parameter(start.to(dtype).clone())
    optimizer = optimizer_of([param])
    for gradient in gradients:
        param.grad = gradient.to(dtype)
        optimizer.step()
    return param.detach()


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 4, 3)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_scaled_is_its_formula_in_float64(shape, weight_decay):
    lr, beta1, beta2, eps = 0.02, 0.9, 0.99, 1e-6
    start, gradients = start_and_gradients(shape)
    p, m, v = start.clone(), torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for t, g in enumerate(gradients, start=1):
        scale = max(1e-3, float(p.square().mean().sqrt()))
        p = p - lr * weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * scale * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + eps)
    ours = run_optimizer(
        lambda params: AdamWScaled(params, lr, (beta1, beta2), eps, weight_decay), start, gradients, torch.float64
    )
    # float64 on both sides, but the kernel takes its learning rate through a tensor: rounding only.
    torch.testing.assert_close(ours, p, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adamw_scaled_with_scales_of_one_is_adamw_bit_for_bit(weight_decay):
    start, gradients = start_and_gradients((64, 33))
    lr = 2.0**-7  # a float32 number, as the update's learning rate is
    expected = run_optimizer(
        lambda params: torch.optim.AdamW(params, lr, (0.9, 0.99), 1e-6, weight_decay, fused=True),
        start, gradients, torch.float32,
    )  # fmt: skip
    param = start.float()
    moments = torch.zeros_like(param), torch.zeros_like(param)
    step, one = torch.zeros(()), torch.ones(())
    hyper = {"lr": lr, "beta1": 0.9, "beta2": 0.99, "eps": 1e-6, "weight_decay": weight_decay}
    for gradient in gradients:
        adamw_scaled_update(param, gradient.float(), *moments, step, one, **hyper)
    assert step == STEPS
    # Without decay equal to the bit; with it, the kernel rounds p - lr decay p where we round p (1 - lr decay).
    torch.testing.assert_close(param, expected, rtol=0, atol=0 if weight_decay == 0 else STEPS * 2e-7)


def test_parameter_rms_has_a_floor_so_that_zeros_can_move():
    assert parameter_rms(torch.tensor([3.0, 4.0])) == pytest.approx(math.sqrt(12.5))
    assert parameter_rms(torch.zeros(3)) == pytest.approx(1e-3)
    moved = run_optimizer(lambda params: AdamWScaled(params, lr=0.1), torch.zeros(3), [torch.ones(3)], torch.float32)
    # The first step of Adam is the gradient's sign.
    torch.testing.assert_close(moved, torch.full((3,), -1e-4), rtol=1e-5, atol=0)


def adafactor_in_float64(p, gradients, lr):
    """T5's Adafactor written out: decay 1 - t^-0.8, update clipped to an RMS of 1, step times RMS(p)."""
    row = column = full = torch.zeros((), dtype=torch.float64)
    for t, g in enumerate(gradients, start=1):
        decay = 1 - t**-0.8
        square = g * g + 1e-30
        if p.ndim >= 2:
            row = decay * row + (1 - decay) * square.mean(-1)
            column = decay * column + (1 - decay) * square.mean(-2)
            second = row[..., :, None] * column[..., None, :] / row.mean(-1)[..., None, None]
        else:
            second = full = decay * full + (1 - decay) * square
        update = g / second.sqrt()
        update = update / max(1.0, float(update.square().mean().sqrt()))
        p = p - lr * max(1e-3, float(p.square().mean().sqrt())) * update
    return p


@pytest.mark.parametrize("shape", [(5,), (4, 3)])
def test_adafactor_is_t5s_formula_in_float64(shape):
    start, gradients = start_and_gradients(shape)
    model = nn.ParameterList([start.clone()])
    optimizer = build_optimizer(model, OptimizerSettings(optimizer="adafactor", lr=0.05))
    for gradient in gradients:
        model[0].grad = gradient
        optimizer.step()
    # float64 on both sides: rounding only.
    torch.testing.assert_close(model[0].data, adafactor_in_float64(start, gradients, 0.05), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_adam_and_adamw_are_torchs(name, kind):
    start, gradients = start_and_gradients((7, 3))
    model = nn.ParameterList([start.clone()])
    optimizer = build_optimizer(
        model, OptimizerSettings(optimizer=name, lr=0.01, weight_decay=0.1, beta2=0.98, eps=1e-5)
    )
    for gradient in gradients:
        model[0].grad = gradient
        optimizer.step()
    expected = run_optimizer(
        lambda params: kind(params, 0.01, (0.9, 0.98), 1e-5, 0.1, foreach=False), start, gradients, torch.float64
    )
    # The same formula in torch's plain loop, float64: rounding only.
    torch.testing.assert_close(model[0].data, expected, rtol=1e-12, atol=1e-12)


def test_only_matrices_decay():
    model = TinyNet()
    decaying, plain = parameter_groups(model, lr=0.1, weight_decay=0.5)
    assert decaying["weight_decay"] == 0.5
    assert plain["weight_decay"] == 0.0
    assert [id(param) for param in decaying["params"]] == [id(model.wi.weight)]
    expected = {id(model.wi.bias), id(model.layer_norm.weight), id(model.relative_attention_bias.weight)}
    assert {id(param) for param in plain["params"]} == expected


def test_a_shared_tensor_is_one_parameter():
    model = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    model[1].weight = model[0].weight
    (group,) = parameter_groups(model, lr=0.1, weight_decay=0.0)
    assert len(group["params"]) == 1


def test_a_frozen_model_is_refused():
    with pytest.raises(ModelError, match="No parameter of the model trains"):
        build_optimizer(TinyNet().requires_grad_(False), OptimizerSettings())


def test_factor_optimizers_want_factors_and_loros_settings_its_optimizer():
    with pytest.raises(ConfigError, match="loro_muon trains low-rank layers, but this model has none"):
        build_optimizer(TinyNet(), OptimizerSettings(optimizer="loro_muon"))
    with pytest.raises(ConfigError, match="adamw has no loro_freq"):
        build_optimizer(TinyNet(), OptimizerSettings(optimizer="adamw"), LoroSettings(loro_freq=5))


@pytest.mark.parametrize("name", WITHOUT_ADAPTER)
def test_set_lr_multiplies_each_groups_own_base(name):
    optimizer = build_optimizer(net_for(name), OptimizerSettings(optimizer=name, lr=0.1, dense_lr=0.4))
    bases = [group["base_lr"] for group in optimizer.param_groups]
    assert sorted(set(bases)) == [0.1, 0.4]
    for factor in (0.5, 0.25):
        assert set_lr(optimizer, factor) == 0.1 * factor  # what was given as --lr, whichever group comes first
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([base * factor for base in bases])


@pytest.mark.parametrize(("optimizer", "net_rate", "t5_rate"), [("muon", 1e-2, 2e-2), ("adamw", 1e-3, 1e-3)])
def test_embeddings_have_a_rate_of_their_own_and_t5s_large_ones_twice_that(optimizer, net_rate, t5_rate):
    for model, rate in ((TinyNet(), net_rate), (tiny_t5(), t5_rate)):
        groups = build_optimizer(model, OptimizerSettings(optimizer=optimizer)).param_groups
        tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
        assert {group["lr"] for group in groups if tables & set(map(id, group["params"]))} == {rate}


@pytest.mark.parametrize("optimizer", ["muon", "loro_muon", "spectron", "loro_adamw", "adamw"])
def test_steps_of_a_fixed_size_are_smaller_in_t5s_unscaled_queries_by_the_root_of_head_dim(optimizer):
    model = tiny_t5()
    if optimizer in FACTOR_OPTIMIZERS:
        convert(model, scope="all", attn_rank=2, mlp_rank=2, init="spectral", seed=0)
    groups = build_optimizer(model, OptimizerSettings(optimizer=optimizer, lr=0.1, dense_lr=0.1)).param_groups
    rates = {id(param): group["base_lr"] for group in groups for param in group["params"]}
    queries = {id(param) for name, param in model.named_parameters() if ".q." in name}
    assert len(queries) == (6 if optimizer in FACTOR_OPTIMIZERS else 3)
    expected = 0.05 if optimizer in MOMENTUM_OPTIMIZERS else 0.1  # head_dim is 4
    assert {rates[query] for query in queries} == {expected}
    assert {rate for param, rate in rates.items() if param not in queries} == {0.1}
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("name", WITHOUT_ADAPTER)
def test_every_optimizer_learns_and_goes_on_from_its_state_bit_for_bit(name):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(32, 6, generator=generator)
    targets = inputs @ torch.randn(6, 4, generator=generator)

    def train(model, optimizer, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (model.wi(inputs) - targets).square().mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    # Spectron's rate bounds the change of a product, which the others' do not.
    settings = OptimizerSettings(optimizer=name, lr=0.3 if name == "spectron" else 0.05, dense_lr=0.05)
    whole = net_for(name)
    halves = copy.deepcopy(whole)
    optimizer = build_optimizer(whole, settings)
    first = train(whole, optimizer, 1)
    assert train(whole, optimizer, 19) < 0.8 * first
    first_half = build_optimizer(halves, settings)
    train(halves, first_half, 10)
    second_half = build_optimizer(halves, settings)
    second_half.load_state_dict(copy.deepcopy(first_half.state_dict()))
    train(halves, second_half, 10)
    assert all(map(torch.equal, whole.parameters(), halves.parameters()))


def test_adamw_scaled_with_a_closure_returns_its_loss():
    param = nn.Parameter(torch.ones(2))
    optimizer = AdamWScaled([param])

    def closure() -> float:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (param < 1).all()


OF_FACTORS = [(name, scope) for name in FACTOR_OPTIMIZERS for scope in ("all", "attn")]


@pytest.mark.parametrize(
    ("name", "scope"), [*((name, None) for name in WITHOUT_ADAPTER if name not in FACTOR_OPTIMIZERS), *OF_FACTORS]
)
def test_what_an_optimizer_will_remember_is_known_before(name, scope):
    model = tiny_t5()
    if scope:
        convert(model, scope=scope, attn_rank=2, mlp_rank=3, init="spectral", seed=0)
    model.shared.requires_grad_(False)
    settings = OptimizerSettings(name, **({"rank": 3} if name == "galore_adamw" else {}))
    optimizer = build_optimizer(model, settings)
    for param in model.parameters():
        param.grad = torch.randn_like(param) if param.requires_grad else None
    optimizer.step()
    remembered = [value for state in optimizer.state.values() for value in state.values()]
    numbers = sum(value.numel() for value in remembered if isinstance(value, torch.Tensor) and value.ndim)
    assert state_elements(model, settings) == numbers
