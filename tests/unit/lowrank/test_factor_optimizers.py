"""The optimizers over pairs: against torch's AdamW, dense float64 formulas, and their own interrupted selves."""

import copy
import io
import itertools
from functools import partial
from typing import NamedTuple

import pytest
import torch
from tiny_models import build
from torch import Tensor, nn

from fivefold.errors import CheckpointError, ConfigError
from fivefold.lowrank.convert import convert, factor_pairs
from fivefold.lowrank.factor_optimizer import factor_groups
from fivefold.lowrank.optimizers import LOROAdamW, LOROMuon, Spectron

# The special updates are the 3rd, 6th, ..., the refreshes come after the 4th, 8th, ...
CYCLE = {"lr": 1e-2, "weight_decay": 0.1, "loro_freq": 3, "refresh": "all", "refresh_freq": 4}
OPTIMIZERS = {
    "factor": partial(LOROAdamW, momentum="factor", **CYCLE),
    "tangent": partial(LOROAdamW, momentum="tangent", **CYCLE),
    "rebalance": partial(LOROAdamW, loro_type="rebalance", **CYCLE),
    "eucl": partial(LOROAdamW, loro_type="eucl", **CYCLE),
    "muon": partial(LOROMuon, lr=1e-2, weight_decay=0.1),
    "spectron": partial(Spectron, lr=1e-1, weight_decay=0.1),
}
by_optimizer = pytest.mark.parametrize("build_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
# Some hundred roundings of 1e-16.
CLOSE = {"rtol": 0, "atol": 1e-12}


class Params(NamedTuple):
    """A matrix and a bias that are not factored, and pairs: two of one shape, one of another."""

    dense: list[nn.Parameter]
    factors: list[nn.Parameter]

    @property
    def all(self) -> list[nn.Parameter]:
        return self.dense + self.factors

    @property
    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return list(zip(self.factors[::2], self.factors[1::2], strict=True))

    def groups(self, **of_factors: float) -> list[dict]:
        return [{"params": self.dense}, {"params": self.factors, "factors": True, **of_factors}]


def parameters(dtype: torch.dtype = torch.float32, pairs: tuple = ((8, 6, 3), (8, 6, 3), (5, 7, 2))) -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = [[(4, 3), (3,)], [shape for m, n, rank in pairs for shape in ((m, rank), (rank, n))]]
    return Params(*([nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in part] for part in shapes))


def give_gradients(params: Params, step: int) -> None:
    """Random ones; those of a pair are (G right^T, left^T G) of one matrix."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params.dense:
        param.grad = torch.randn(param.shape, generator=generator).to(param.dtype)
    for left, right in params.pairs:
        gradient = torch.randn(len(left), right.shape[1], generator=generator).to(left.dtype)
        left.grad, right.grad = gradient @ right.detach().mT, left.detach().mT @ gradient


def train(params: Params, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        give_gradients(params, step)
        optimizer.step()


def copied(tensors: list) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def through_a_file(state: dict) -> dict:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# The same in full matrices ------------------------------------------------------------------------------------------


def dense_tangent(left: Tensor, right: Tensor, of_left: Tensor, of_right: Tensor) -> Tensor:
    """The tangent vector of two directions: G V V^T from one, U U^T G from the other, what they share from both."""
    seen_left, seen_right = of_left @ torch.linalg.pinv(right.mT), torch.linalg.pinv(left.mT) @ of_right
    onto_left, onto_right = left @ torch.linalg.pinv(left), torch.linalg.pinv(right) @ right
    return seen_left + seen_right - (onto_left @ seen_left + seen_right @ onto_right) / 2


def best_approximation(matrix: Tensor, rank: int) -> Tensor:
    u, values, vh = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ vh[:rank]


class Moments:
    """Adam's two averages of one parameter, by the book."""

    def __init__(self) -> None:
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.count = 0

    def direction(self, grad: Tensor) -> Tensor:
        self.first, self.second = 0.9 * self.first + 0.1 * grad, 0.999 * self.second + 0.001 * grad**2
        self.count += 1
        first, second = self.first / (1 - 0.9**self.count), self.second / (1 - 0.999**self.count)
        return first / (second.sqrt() + 1e-6)


# LOROAdamW ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("lr_scale", [1.0, 0.25])
@pytest.mark.parametrize("kind", ["eucl", "factor", "tangent"])
def test_lazy_updates_are_torchs_adamw(kind, lr_scale, weight_decay):
    ours, theirs = parameters(), parameters()
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-5, "weight_decay": weight_decay}
    lazy = {"loro_type": "eucl"} if kind == "eucl" else {"loro_freq": 1000, "momentum": kind}
    optimizer = LOROAdamW(ours.groups(lr_scale=lr_scale), **settings, **lazy)
    # Decay, lr weight_decay, is not scaled; nor is anything in eucl.
    scale = 1.0 if kind == "eucl" else lr_scale
    groups = theirs.groups(lr=1e-2 * scale, weight_decay=weight_decay / scale)
    adamw = torch.optim.AdamW(groups, **settings, fused=True)
    train(ours, optimizer, range(20))
    train(theirs, adamw, range(20))
    assert all(map(torch.equal, ours.all, theirs.all))
    assert optimizer.num_recovered() == 0


@pytest.mark.parametrize("loro_type", ["loro", "rebalance"])
@pytest.mark.parametrize("momentum", ["factor", "tangent"])
def test_only_every_loro_freq_th_update_is_special(momentum, loro_type):
    params, plain = parameters(), parameters()
    optimizer = LOROAdamW(params.groups(), lr=1e-2, loro_freq=4, loro_type=loro_type, momentum=momentum)
    adamw = torch.optim.AdamW(plain.groups(), lr=1e-2, eps=1e-6, weight_decay=0.0, fused=True)
    train(params, optimizer, range(3))
    train(plain, adamw, range(3))
    for got, expected in zip(params.all, plain.all, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0 if momentum == "factor" else 1e-6)
    for step in range(3, 13):
        train(params, optimizer, range(step, step + 1))
        is_balanced = [
            torch.allclose(left.mT @ left, right @ right.mT, rtol=0, atol=1e-5) for left, right in params.pairs
        ]
        assert is_balanced == 3 * [step in (3, 7, 11)]


@pytest.mark.parametrize("loro_type", ["loro", "rebalance"])
@pytest.mark.parametrize("momentum", ["factor", "tangent"])
@pytest.mark.parametrize("scale_exact", [False, True])
def test_special_updates_are_the_dense_formula(loro_type, momentum, scale_exact):
    """Five updates, of which the 2nd and 4th are special, with decay and with lr_scale .25."""
    params, lr, decay = parameters(torch.float64), 0.05, 0.4
    optimizer = LOROAdamW(
        params.groups(lr_scale=0.25), lr=lr, weight_decay=decay, loro_type=loro_type, loro_freq=2, momentum=momentum,
        scale_exact=scale_exact, damping=0.0,
    )  # fmt: skip
    lazy_lr = 0.25 * lr
    exact_lr = lazy_lr if scale_exact else lr
    moments = [Moments() for _ in params.factors]
    for step in range(5):
        give_gradients(params, step)
        directions = [each.direction(param.grad) for each, param in zip(moments, params.factors, strict=True)]
        lazy = [
            (1 - lr * decay) * param.detach() - lazy_lr * move
            for param, move in zip(params.factors, directions, strict=True)
        ]
        is_special = step in (1, 3)
        old = copied(params.factors) if loro_type == "loro" else lazy
        optimizer.step()
        for index, (left, right) in enumerate(params.pairs):
            sides = slice(2 * index, 2 * index + 2)
            expected = lazy[2 * index] @ lazy[2 * index + 1]
            if is_special and loro_type == "loro":
                moved = (1 - lr * decay) ** 2 * old[2 * index] @ old[2 * index + 1]
                moved = moved - exact_lr * dense_tangent(*old[sides], *directions[sides])
                expected = best_approximation(moved, left.shape[1])
            torch.testing.assert_close(left @ right, expected, **CLOSE)
            if is_special and momentum == "tangent":
                carried = dense_tangent(*old[sides], *(each.first for each in moments[sides]))
                moments[2 * index].first = carried @ right.detach().mT
                moments[2 * index + 1].first = left.detach().mT @ carried
        for param, each in zip(params.factors, moments, strict=True):
            torch.testing.assert_close(optimizer.state[param]["exp_avg"], each.first, **CLOSE)
            torch.testing.assert_close(optimizer.state[param]["exp_avg_sq"], each.second, **CLOSE)
    assert optimizer.num_recovered() == 0


@pytest.mark.parametrize("scale_exact", [False, True])
@pytest.mark.parametrize("loro_type", ["loro", "rebalance", "eucl"])
def test_without_gradient_all_updates_shrink_a_product_alike_whatever_lr_scale_is(loro_type, scale_exact):
    params = parameters(torch.float64)
    optimizer = LOROAdamW(
        params.groups(lr_scale=0.1), lr=0.05, weight_decay=0.4, loro_type=loro_type, loro_freq=3,
        scale_exact=scale_exact,
    )  # fmt: skip
    for _ in range(6):
        before = [left.detach() @ right.detach() for left, right in params.pairs]
        for param in params.all:
            param.grad = torch.zeros_like(param)
        optimizer.step()
        for (left, right), was in zip(params.pairs, before, strict=True):
            torch.testing.assert_close(left @ right, (1 - 0.05 * 0.4) ** 2 * was, **CLOSE)


@pytest.mark.parametrize("loro_type", ["loro", "rebalance"])
def test_first_moments_are_carried_over_exactly_however_damped_the_step_is(loro_type):
    params = parameters(torch.float64)
    optimizer = LOROAdamW(params.groups(), lr=0.05, loro_type=loro_type, momentum="tangent", damping=1e-2)
    give_gradients(params, 0)
    old, moments = copied(params.factors), [0.1 * param.grad for param in params.factors]
    optimizer.step()
    if loro_type == "rebalance":  # the basis changes after a lazy step
        directions = [moment / (moment.abs() + 1e-7) for moment in moments]
        old = [param - 0.05 * direction for param, direction in zip(old, directions, strict=True)]
    for index, (left, right) in enumerate(params.pairs):
        sides = slice(2 * index, 2 * index + 2)
        carried = dense_tangent(*old[sides], *moments[sides])
        for param, expected in zip((left, right), (carried @ right.mT, left.mT @ carried), strict=True):
            # The rounding that `tangent.DAMPING` allows for, squared, at condition 5 or so; 1e-2 would leave 1e-2.
            assert (optimizer.state[param]["exp_avg"] - expected).norm() < 1e-8 * expected.norm()


def test_a_thin_pair_that_a_large_damping_would_tell_is_not_singular():
    params = parameters()
    params.factors[0].data[:, 1] *= 1e-3
    optimizer = LOROAdamW(params.groups(), damping=1e-2)
    train(params, optimizer, range(1))
    assert optimizer.num_recovered() == 0


@pytest.mark.parametrize("scale_exact", [False, True])
def test_lr_scale_is_for_lazy_updates_unless_told(scale_exact):
    scaled, plain = parameters(), parameters()
    lr = 1e-3 if scale_exact else 1e-2
    train(scaled, LOROAdamW(scaled.groups(lr_scale=0.1), lr=1e-2, scale_exact=scale_exact), range(3))
    train(plain, LOROAdamW(plain.groups(lr=lr), lr=1e-2), range(3))
    assert all(map(torch.equal, scaled.all, plain.all))


@pytest.mark.parametrize(
    ("refresh", "wiped"), [("reg", ["dense"]), ("lrk", ["factors"]), ("all", ["dense", "factors"])]
)
def test_a_refresh_makes_adam_new_for_whom_it_names(refresh, wiped):
    ours, theirs = parameters(), parameters()
    optimizer = LOROAdamW(ours.groups(), lr=1e-2, loro_type="eucl", refresh=refresh, refresh_freq=3)
    adamw = torch.optim.AdamW(theirs.groups(), lr=1e-2, eps=1e-6, weight_decay=0.0, fused=True)
    for step in range(8):
        train(ours, optimizer, range(step, step + 1))
        train(theirs, adamw, range(step, step + 1))
        if step in (2, 5):
            for param in itertools.chain(*(getattr(theirs, part) for part in wiped)):
                adamw.state.pop(param)
            for part in ("dense", "factors"):
                states = [optimizer.state[param] for param in getattr(ours, part)]
                assert all(bool(state["exp_avg"].any()) != (part in wiped) for state in states)
        assert all(map(torch.equal, ours.all, theirs.all))


def test_with_tangent_momentum_a_refresh_leaves_the_factors_first_moments():
    ours, theirs = parameters(), parameters()
    settings = {"lr": 0.05, "loro_freq": 1000, "refresh": "all", "refresh_freq": 3}
    optimizer = LOROAdamW(ours.groups(), **settings, momentum="tangent")
    wiping = LOROAdamW(theirs.groups(), **settings)
    moments = [Moments() for _ in ours.factors]
    for step in range(8):
        train(ours, optimizer, range(step, step + 1))
        train(theirs, wiping, range(step, step + 1))
        for param, each in zip(ours.factors, moments, strict=True):
            each.direction(param.grad)
            torch.testing.assert_close(optimizer.state[param]["exp_avg"], each.first, rtol=0, atol=1e-6)
        assert all(map(torch.equal, ours.dense, theirs.dense))


@pytest.mark.parametrize("momentum", ["factor", "tangent"])
def test_no_update_after_a_refresh_is_a_leap(momentum):
    """An old average over the root of a single new square would be: where that one is near zero, thousands of lr."""
    params = parameters(pairs=((60, 40, 8),))
    optimizer = LOROAdamW(params.groups(), lr=1e-3, loro_freq=1000, momentum=momentum, refresh="all", refresh_freq=10)
    for step in range(32):
        before = copied(params.all)
        train(params, optimizer, range(step, step + 1))
        moves = [(now - was).abs().max() for now, was in zip(copied(params.all), before, strict=True)]
        assert max(moves) < 10 * 1e-3  # Adam's own bound is (1 - beta1) / sqrt(1 - beta2) = 3.2 lr


@pytest.mark.parametrize("momentum", ["factor", "tangent"])
def test_a_pair_whose_gradients_come_late_is_stepped_as_if_alone(momentum):
    """Its moments hold fewer gradients than those of the pair that it is stacked with."""
    together, alone = parameters(pairs=((8, 6, 3), (8, 6, 3))), parameters(pairs=((8, 6, 3), (8, 6, 3)))
    settings = {"lr": 1e-2, "loro_freq": 5, "momentum": momentum}
    optimizers = [LOROAdamW(together.groups(), **settings)]
    optimizers += [LOROAdamW([{"params": pair, "factors": True}], **settings) for pair in alone.pairs]
    for step in range(5):
        for params in (together, alone):
            give_gradients(params, step)
            if step < 3:
                for param in params.factors[2:]:
                    param.grad = None
        for optimizer in optimizers:
            optimizer.step()
    for got, expected in zip(together.pairs, alone.pairs, strict=True):
        torch.testing.assert_close(got[0] @ got[1], expected[0] @ expected[1], rtol=0, atol=1e-5)


# All of them --------------------------------------------------------------------------------------------------------


@by_optimizer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_that_was_saved_in_the_middle_of_a_cycle_ends_bit_for_bit_the_same(build_optimizer, dtype):
    whole = parameters(dtype)
    optimizer = build_optimizer(whole.groups(lr_scale=0.5))
    train(whole, optimizer, range(5))
    resumed = Params(*copy.deepcopy(tuple(whole)))
    second = build_optimizer(resumed.groups(lr_scale=0.5))
    second.load_state_dict(through_a_file(optimizer.state_dict()))
    train(whole, optimizer, range(5, 11))
    train(resumed, second, range(5, 11))
    assert all(map(torch.equal, whole.all, resumed.all))
    for mine, other in zip(whole.all, resumed.all, strict=True):
        states = optimizer.state[mine], second.state[other]
        assert list(states[0]) == list(states[1])
        for name, value in states[0].items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][name]))
            assert not isinstance(value, Tensor) or value.dtype == states[1][name].dtype


@by_optimizer
@pytest.mark.parametrize(
    "pairs",
    [((8, 6, 2), (8, 6, 2), (5, 7, 2)), ((8, 6, 3), (8, 6, 3)), ((8, 6, 3), (8, 6, 3), (5, 7, 2), (5, 7, 2))],
    ids=["another rank", "a smaller model", "a larger model"],
)
def test_the_state_of_another_model_is_refused(build_optimizer, pairs):
    other, own = parameters(pairs=pairs), parameters()
    saved = build_optimizer(other.groups())
    train(other, saved, range(2))
    with pytest.raises(CheckpointError, match="another model"):
        build_optimizer(own.groups()).load_state_dict(saved.state_dict())


@pytest.mark.parametrize(
    ("saved", "own", "sentence"),
    [
        (LOROAdamW, LOROMuon, "says nothing of beta, which LOROMuon needs"),
        (LOROAdamW, Spectron, "says nothing of beta, which Spectron needs"),
        (LOROMuon, LOROAdamW, "says nothing of damping, loro_freq, .*, which LOROAdamW needs"),
    ],
)
def test_the_state_of_another_optimizer_is_refused(saved, own, sentence):
    params = parameters()
    optimizer = saved(params.groups())
    train(params, optimizer, range(2))
    with pytest.raises(CheckpointError, match=sentence):
        own(params.groups()).load_state_dict(through_a_file(optimizer.state_dict()))


def test_a_schedule_may_come_before_or_after_the_state():
    """It leaves a key of its own in the groups."""
    params = parameters()
    plain, scheduled = LOROMuon(params.groups()), LOROMuon(params.groups())
    torch.optim.lr_scheduler.LambdaLR(scheduled, lambda step: 1.0)
    for saved, own in ((plain, scheduled), (scheduled, plain)):
        own.load_state_dict(through_a_file(saved.state_dict()))


@by_optimizer
@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        ([(8, 3), (8, 3), (3, 6), (3, 6)], r"\[8, 3\] followed by \[8, 3\]"),
        ([(3, 6), (8, 3)], r"\[3, 6\] followed by \[8, 3\]"),
        ([(8, 3), (3,)], r"\[8, 3\] followed by \[3\]"),
        ([(8, 3), (3, 6), (8, 3)], "3 tensors"),
        ([(2, 3), (3, 6)], r"\[2, 3\]"),
        ([(8, 3), (3, 2)], r"\[3, 2\]"),
    ],
    ids=["sorted by side", "right first", "a vector", "one left over", "rank above m", "rank above n"],
)
def test_a_group_that_holds_no_pairs_is_refused(build_optimizer, shapes, sentence):
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    with pytest.raises(ConfigError, match=sentence):
        build_optimizer([{"params": params, "factors": True}])


@pytest.mark.parametrize("refresh", ["reg", "lrk", "all"])
def test_a_refresh_without_its_frequency_is_refused(refresh):
    with pytest.raises(ConfigError, match=f"loro_refresh {refresh} got loro_refresh_freq 0"):
        LOROAdamW(parameters().groups(), refresh=refresh)


def test_carrying_moments_over_to_a_basis_that_never_changes_is_refused():
    with pytest.raises(ConfigError, match="loro_type eucl the factors never change their basis"):
        LOROAdamW(parameters().groups(), loro_type="eucl", momentum="tangent")


@by_optimizer
def test_what_has_no_gradient_stays_and_the_rest_does_not_care(build_optimizer):
    params, all_move = parameters(), parameters()
    idle = [params.dense[1], *params.pairs[1]]
    before = copied(idle)
    optimizer = build_optimizer(params.groups())
    for step in range(7):
        give_gradients(params, step)
        for param in idle:
            param.grad = None
        optimizer.step()
    train(all_move, build_optimizer(all_move.groups()), range(7))
    assert all(map(torch.equal, idle, before))
    assert not any("exp_avg" in optimizer.state[param] or "momentum" in optimizer.state[param] for param in idle)
    assert torch.equal(params.dense[0], all_move.dense[0])
    for index in (0, 2):
        (left, right), (other_left, other_right) = params.pairs[index], all_move.pairs[index]
        # 1e-5: products of stacks of one and of two round differently, and Muon's quintic lifts that.
        torch.testing.assert_close(left @ right, other_left @ other_right, rtol=0, atol=1e-5)
    optimizer.zero_grad()
    optimizer.step()  # nothing at all to move


@by_optimizer
def test_a_closure_is_called_with_gradients_on_and_its_loss_returned(build_optimizer):
    by_hand, by_closure = parameters(), parameters()
    optimizers = [build_optimizer(params.groups()) for params in (by_hand, by_closure)]

    def loss_of(params: Params) -> Tensor:
        return sum((left @ right).square().sum() for left, right in params.pairs) + params.dense[0].square().sum()

    def closure() -> Tensor:
        optimizers[1].zero_grad()
        loss = loss_of(by_closure)
        loss.backward()
        return loss

    for _ in range(4):
        optimizers[0].zero_grad()
        loss = loss_of(by_hand)
        loss.backward()
        assert optimizers[0].step() is None
        assert torch.equal(optimizers[1].step(closure), loss)
    assert all(map(torch.equal, by_hand.all, by_closure.all))
    assert all(param.requires_grad for param in by_closure.all)


@by_optimizer
def test_with_grad_scaler_clipping_and_a_schedule(build_optimizer):
    """A scaled, unscaled loss gives the same steps bit for bit, and a step that overflowed is no step at all."""
    plain, scaled = parameters(), parameters()
    optimizers = [build_optimizer(params.groups()) for params in (plain, scaled)]
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1 / (1 + step)) for each in optimizers]
    # A power of two moves exponents only; it is left alone for longer than the test takes.
    scalers = [torch.amp.GradScaler("cpu", enabled=False), torch.amp.GradScaler("cpu", init_scale=2.0**10)]

    def step(params: Params, index: int, factor: float) -> None:
        optimizer, scaler = optimizers[index], scalers[index]
        optimizer.zero_grad()
        loss = sum((left @ right - 1).square().sum() for left, right in params.pairs)
        loss = loss + sum(param.square().sum() for param in params.dense)
        scaler.scale(factor * loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(params.all, 1.0)
        scaler.step(optimizer)
        scaler.update()

    for _ in range(5):
        for index, params in enumerate((plain, scaled)):
            step(params, index, 1.0)
            schedules[index].step()
    before = copied(scaled.all)
    step(scaled, 1, 1e38)
    assert all(map(torch.equal, scaled.all, before))
    assert scalers[1].get_scale() == 2.0**9
    for index, params in enumerate((plain, scaled)):
        step(params, index, 1.0)
    assert all(map(torch.equal, plain.all, scaled.all))
    assert any(not torch.equal(param, was) for param, was in zip(scaled.all, before, strict=True))


@by_optimizer
def test_bfloat16_parameters_step_near_float32_ones(build_optimizer):
    half, full = parameters(torch.bfloat16), parameters()
    optimizer = build_optimizer(half.groups())
    train(half, optimizer, range(12))
    train(full, build_optimizer(full.groups()), range(12))
    for got, expected in zip(half.dense, full.dense, strict=True):
        # Entries of up to 2 have roundings of 8e-3, a dozen of them in each.
        torch.testing.assert_close(got.float(), expected, rtol=0, atol=0.1)
    for (left, right), (full_left, full_right) in zip(half.pairs, full.pairs, strict=True):
        expected = full_left @ full_right
        assert (left.float() @ right.float() - expected).norm() < 0.05 * expected.norm()
    assert all(param.dtype == torch.bfloat16 and param.isfinite().all() for param in half.all)
    # From 256 on bfloat16 cannot count by one.
    assert all(state["step"].dtype == torch.float32 for state in optimizer.state.values() if "step" in state)


@by_optimizer
def test_pairs_step_as_each_would_alone(build_optimizer):
    together, alone = parameters(), parameters()
    train(together, build_optimizer(together.groups()), range(6))
    optimizers = [build_optimizer([{"params": list(pair), "factors": True}]) for pair in alone.pairs]
    for step in range(6):
        give_gradients(alone, step)
        for optimizer in optimizers:
            optimizer.step()
    for (left, right), (other_left, other_right) in zip(together.pairs, alone.pairs, strict=True):
        # Roundings of 1e-7, which Muon's quintic may lift a hundredfold; signs of singular vectors are free.
        torch.testing.assert_close(left @ right, other_left @ other_right, rtol=0, atol=2e-5)


# Solutions and accidents --------------------------------------------------------------------------------------------

SOLVERS = {
    "exact": partial(LOROAdamW, lr=1.0),
    "exact each tenth": partial(LOROAdamW, lr=0.1, loro_freq=10),
    "wiped each tenth": partial(LOROAdamW, lr=0.1, loro_freq=10, refresh="lrk", refresh_freq=10),
    "tangent": partial(LOROAdamW, lr=0.1, loro_freq=10, momentum="tangent"),
    "tangent, wiped": partial(LOROAdamW, lr=0.1, loro_freq=10, momentum="tangent", refresh="lrk", refresh_freq=10),
    "rebalance": partial(LOROAdamW, lr=0.1, loro_freq=10, loro_type="rebalance"),
    "muon": partial(LOROMuon, lr=0.3),
    "spectron": partial(Spectron, lr=1.0),
}


class Problem:
    """Least squares: find a matrix [20, 15] of rank 3 from what it does to 40 vectors."""

    def __init__(self, start: str) -> None:
        generator = torch.Generator().manual_seed(3)
        left, right = (torch.randn(shape, generator=generator) for shape in ((20, 3), (3, 15)))
        self.solution = left @ right
        self.inputs = torch.randn(15, 40, generator=generator)
        if start == "random":
            left, right = (torch.randn(shape, generator=generator) / 4 for shape in ((20, 3), (3, 15)))
        else:
            left, right = torch.full((20, 3), float(start)), torch.full((3, 15), float(start))
        self.pair = [nn.Parameter(left), nn.Parameter(right)]

    def solve(self, build_optimizer, num_steps: int) -> tuple[float, list[int]]:
        """Distance from the solution, relative to it, and what was recovered at each step."""
        optimizer = build_optimizer([{"params": self.pair, "factors": True}])
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
        recovered = []
        for _ in range(num_steps):
            optimizer.zero_grad()
            (self.pair[0] @ self.pair[1] @ self.inputs - self.solution @ self.inputs).square().mean().backward()
            optimizer.step()
            schedule.step()
            recovered.append(optimizer.num_recovered())
        gap = (self.pair[0] @ self.pair[1] - self.solution).detach()
        return float(gap.norm() / self.solution.norm()), recovered


@pytest.mark.parametrize("build_optimizer", SOLVERS.values(), ids=SOLVERS)
def test_a_matrix_of_true_rank_is_found(build_optimizer):
    gap, recovered = Problem("random").solve(build_optimizer, 300)
    assert gap < 0.01
    assert not any(recovered)


@pytest.mark.parametrize("name", ["exact each tenth", "tangent", "muon"])
def test_constant_factors_recover_and_are_counted_while_they_are_singular(name):
    gap, recovered = Problem("0.1").solve(SOLVERS[name], 300)
    assert gap < 0.01
    assert recovered[0 if name == "muon" else 9] == 1
    assert not any(recovered[20:])


def test_loro_muon_leaves_even_zero():
    """Where no factor has a gradient; its retraction leaves left a basis, and thereby right a gradient."""
    gap, recovered = Problem("0.0").solve(SOLVERS["muon"], 300)
    assert gap < 0.01
    assert not any(recovered[5:])


@pytest.mark.parametrize("name", ["exact", "exact each tenth", "tangent", "rebalance"])
def test_loro_leaves_even_zero_after_its_second_special_update(name):
    """The first one gives right its rows, and thereby left a gradient."""
    gap, recovered = Problem("0.0").solve(SOLVERS[name], 400)
    assert gap < 0.01
    special = recovered if name == "exact" else recovered[9::10]
    assert special[0] == 1
    assert not any(special[2:])


@pytest.mark.parametrize("loro_type", ["loro", "rebalance"])
def test_directions_that_both_factors_have_lost_come_back(loro_type):
    problem = Problem("random")
    for side, dim in zip(problem.pair, (1, 0), strict=True):
        side.data.index_fill_(dim, torch.tensor([0, 2]), 0.0)
    gap, _ = problem.solve(partial(LOROAdamW, lr=0.1, loro_freq=10, loro_type=loro_type), 300)
    assert gap < 0.01


def test_spectron_counts_pairs_with_directions_that_both_factors_have_lost_at_each_update():
    params = parameters()
    for param in params.factors[:2]:
        param.data.zero_()
    params.factors[3].data[1] = 0  # right alone
    params.factors[4].data[:, 1] = 0
    params.factors[5].data[1] = 0
    optimizer = Spectron(params.groups())
    for step in range(2):
        train(params, optimizer, range(step, step + 1))
        assert optimizer.num_recovered() == 2


@pytest.mark.parametrize("build_optimizer", [LOROAdamW, partial(LOROAdamW, momentum="tangent"), LOROMuon])
def test_singular_pairs_are_counted_one_by_one_and_once(build_optimizer):
    params = parameters()
    params.factors[0].data[:, 1] = 0  # of the first pair
    params.factors[5].data.fill_(0.2)  # of the third
    optimizer = build_optimizer(params.groups())
    train(params, optimizer, range(1))
    assert optimizer.num_recovered() == 2
    assert optimizer.num_recovered() == 0
    assert all(param.isfinite().all() for param in params.all)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["factor", "tangent", "muon", "spectron"])
def test_a_gradient_that_is_not_finite_stops_its_own_pair_only(name, bad):
    clean, dirty = parameters(), parameters()
    build_optimizer = OPTIMIZERS[name] if name in ("muon", "spectron") else partial(LOROAdamW, momentum=name)
    optimizers = [build_optimizer(params.groups()) for params in (clean, dirty)]
    for params in (clean, dirty):
        give_gradients(params, 0)
    dirty.factors[0].grad[2, 1] = bad
    before = copied(dirty.factors[:2])
    for optimizer in optimizers:
        optimizer.step()
    assert all(map(torch.equal, dirty.factors[:2], before))
    assert all(map(torch.equal, dirty.factors[2:], clean.factors[2:]))
    assert [optimizer.num_recovered() for optimizer in optimizers] == [0, 1]


@pytest.mark.parametrize(
    "kind", [{"loro_freq": 1000}, {"loro_freq": 1000, "momentum": "tangent"}, {"loro_type": "eucl"}]
)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1e30])
@pytest.mark.parametrize("index", [2, 5])
def test_a_lazy_update_with_a_gradient_that_is_not_finite_is_none_for_its_pair(index, bad, kind):
    """Neither in weights nor in moments nor in their count; 1e30 would make a second moment infinite."""
    dirty, without = parameters(), parameters()
    optimizers = [
        LOROAdamW(params.groups(lr_scale=0.5), lr=1e-2, weight_decay=0.1, **kind) for params in (dirty, without)
    ]
    for step in range(6):
        for params in (dirty, without):
            give_gradients(params, step)
        if step in (0, 3):
            dirty.factors[index].grad[1, 1] = bad
            for param in without.pairs[index // 2]:
                param.grad = None
        for optimizer in optimizers:
            optimizer.step()
        assert [optimizer.num_recovered() for optimizer in optimizers] == [int(step in (0, 3)), 0]
    for got, expected in zip(dirty.all, without.all, strict=True):
        assert torch.equal(got, expected)
        states = optimizers[0].state[got], optimizers[1].state[expected]
        assert all(
            torch.equal(torch.as_tensor(states[0][name]), torch.as_tensor(states[1][name])) for name in states[0]
        )


@pytest.mark.parametrize("name", ["muon", "spectron"])
def test_a_pair_moves_again_after_a_gradient_that_was_not_finite(name):
    params = parameters()
    optimizer = OPTIMIZERS[name](params.groups())
    give_gradients(params, 0)
    params.factors[0].grad[2, 1] = torch.nan
    optimizer.step()
    before = copied(params.factors)
    train(params, optimizer, range(1, 2))
    assert all(param.isfinite().all() for param in params.factors)
    assert not any(map(torch.equal, params.factors, before))


# Groups of a model --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["t5", "llama", "qwen2"])
def test_every_parameter_of_a_model_is_in_one_group(family):
    model = build(family)
    convert(model, scope="all", attn_rank=8, mlp_rank=12, init="xavier")
    groups = factor_groups(
        model, lr=1e-2, dense_lr=1e-3, weight_decay=0.1,
        lr_scale=lambda rank, largest_side, hidden_size: rank / (largest_side * hidden_size),
    )  # fmt: skip
    listed = [param for group in groups for param in group["params"]]
    assert len(listed) == len({id(param) for param in listed})
    assert {id(param) for param in listed} == {id(param) for param in model.parameters()}
    scales = {}
    for group in groups:
        assert group["base_lr"] == group["lr"]
        assert group["factors"] == (group["lr"] == 1e-2)
        if group["factors"]:
            assert group["weight_decay"] == 0.1
            scales |= {id(param): group["lr_scale"] for param in group["params"]}
    for _, layer in factor_pairs(model):
        expected = layer.rank / (max(layer.in_features, layer.out_features) * 32)
        assert scales[id(layer.left.weight)] == scales[id(layer.right.weight)] == expected
    LOROMuon(groups)


def test_frozen_and_half_frozen_pairs_are_left_out_and_adamw_moves_the_other_half():
    model = build("llama")
    convert(model, scope="attn", attn_rank=8, mlp_rank=8, init="xavier")
    (_, frozen), (_, half), *_ = factor_pairs(model)
    frozen.requires_grad_(False)
    half.right.weight.requires_grad_(False)
    in_pairs, not_in_pairs = [], []
    for group in factor_groups(model, lr=1e-2, dense_lr=1e-3, weight_decay=0.0):
        (in_pairs if group["factors"] else not_in_pairs).extend(map(id, group["params"]))
    assert len(in_pairs) == 2 * (8 - 2)
    assert id(half.left.weight) in not_in_pairs
    for weight in (frozen.left.weight, frozen.right.weight, half.right.weight):
        assert id(weight) not in in_pairs + not_in_pairs


def test_factors_that_two_layers_share_are_one_pair():
    model = build("llama")
    first, second = model.model.layers
    second.self_attn.q_proj.weight = first.self_attn.q_proj.weight
    convert(model, scope="all", attn_rank=8, mlp_rank=8, init="xavier")
    assert second.self_attn.q_proj.left.weight is first.self_attn.q_proj.left.weight
    groups = factor_groups(model, lr=1e-2, dense_lr=1e-3, weight_decay=0.0)
    listed = [id(param) for group in groups for param in group["params"]]
    assert len(listed) == len(set(listed))
    LOROMuon(groups)  # torch warns of a parameter that is listed twice


@pytest.mark.parametrize("kind", [LOROAdamW, LOROMuon, Spectron])
def test_a_copy_makes_the_same_step(kind):
    params = parameters()
    optimizer = kind(params.groups(), lr=1e-2)
    train(params, optimizer, range(2))
    give_gradients(params, 2)
    # Together, so that the copy moves the copied parameters.
    copied_params, copied_optimizer = copy.deepcopy((params, optimizer))
    for param, twin in zip(params.all, copied_params.all, strict=True):
        twin.grad = param.grad.clone()
    optimizer.step()
    copied_optimizer.step()
    assert all(map(torch.equal, params.all, copied_params.all))
