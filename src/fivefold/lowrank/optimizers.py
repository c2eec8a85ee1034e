"""LORO, Muon on the fixed-rank manifold and Spectron: thin shells around the steps in `lowrank.update`."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from fivefold.errors import ConfigError
from fivefold.lowrank.factor_optimizer import FactorOptimizer, blend
from fivefold.lowrank.manifold_muon import manifold_muon_step
from fivefold.lowrank.stacks import Stack, divided, spread, stacked, stacks
from fivefold.lowrank.tangent import DAMPING, Factors, as_gradient, balance, decompose, project
from fivefold.lowrank.update import exact_step, lazy_step, spectron_step


class LOROAdamW(FactorOptimizer):
    """LORO: factor Adam with a Riemannian step on W = left right every `loro_freq` updates.

    Source: Mo, Huang and Pan, "Parameter and Memory Efficient Pretraining via Low-rank Riemannian Optimization" (ICLR
    2025), Algorithm 1.
    Differs: `step()` is the standard one and counts by itself; weight decay is honoured in both kinds of step, and
    follows lr alone in both; solves are damped, so that singular factors neither crash nor blow up; pairs of one shape
    go through the linear algebra together, divided among the processes of a `torch.distributed` group.

    Args:
        params: groups of parameters, see `factor_groups`; those of factors may bring an `lr_scale`, which multiplies
            their lazy steps.
        lr, betas, eps, weight_decay: as in AdamW.
        loro_type: what every `loro_freq`-th update is: loro the exact step; rebalance a lazy step like the others and
            then balanced factors of the same W; eucl nothing: all updates are plain AdamW, without `lr_scale`.
        loro_freq: updates from one such step to the next.
        refresh: whose Adam state is wiped every `refresh_freq` updates: reg (what is not factored), lrk (factors), all.
            With momentum tangent the factors' state is not wiped: their first moments stay, and their second moments
            become their mean over the rank, which a rotation of the basis leaves alone.
        momentum: what becomes of the factors' first moments when the factors change their basis: factor leaves them as
            they are, as the reference does; tangent carries them over.
        scale_exact: `lr_scale` holds for exact steps too, not for lazy ones alone as published.
        damping: of exact steps, see `tangent.damped_inverse`; first moments are carried over with the default at most.

    Raises:
        ConfigError: a frequency below 1, a refresh without its frequency, tangent momentum of factors whose basis never
            changes (eucl), or a group of factors that holds no pairs.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        loro_type: Literal["loro", "rebalance", "eucl"] = "loro",
        loro_freq: int = 1,
        refresh: Literal["none", "reg", "lrk", "all"] = "none",
        refresh_freq: int = 0,
        momentum: Literal["factor", "tangent"] = "factor",
        scale_exact: bool = False,
        damping: float = DAMPING,
    ) -> None:
        if loro_freq < 1:
            raise ConfigError(f"loro_freq is {loro_freq}, but it must be 1 (every update) or above.")
        if refresh != "none" and refresh_freq < 1:
            raise ConfigError(
                f"loro_refresh {refresh} got loro_refresh_freq {refresh_freq}; give the updates between two refreshes, "
                "such as 500."
            )
        if loro_type == "eucl" and momentum == "tangent":
            raise ConfigError(
                "loro_momentum is tangent, but with loro_type eucl the factors never change their basis, so that there "
                "is nothing to carry over; use loro_type loro or rebalance, or loro_momentum factor."
            )
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            lr_scale=1.0,
            loro_type=loro_type,
            loro_freq=loro_freq,
            refresh=refresh,
            refresh_freq=refresh_freq,
            momentum=momentum,
            scale_exact=scale_exact,
            damping=damping,
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step and wipe what is due; a closure, if given, recomputes the loss and its gradients first."""
        loss = super().step(closure)
        for group in self.param_groups:
            updates = 1 + self._updates(group)
            for param in group["params"]:
                self.state[param]["updates"] = updates
            is_meant = group["refresh"] in ("all", "lrk" if group["factors"] else "reg")
            if is_meant and updates % group["refresh_freq"] == 0:
                self._refresh(group)
        return loss

    def _updates(self, group: dict[str, Any]) -> int:
        return self.state[group["params"][0]].get("updates", 0)

    def _step_factors(self, group: dict[str, Any]) -> None:
        is_eucl = group["loro_type"] == "eucl"
        if is_eucl or (1 + self._updates(group)) % group["loro_freq"]:
            self._adamw(self._finite_pairs(group["params"]), group, 1.0 if is_eucl else group["lr_scale"])
            return
        for stack in stacks(group["params"]):
            old, direction = stack.factors(), self._direction(stack, group)
            if group["loro_type"] == "rebalance":
                moved = lazy_step(old, direction, group["lr"], group["weight_decay"], group["lr_scale"])
                old = self._write(stack, old, moved)
            is_carried = group["momentum"] == "tangent"
            average = self._averages("exp_avg", stack) if is_carried else ()
            change = partial(_change_basis, group=group)
            left, right, is_singular, *average = divided(change, *old, *direction, *average)
            self._write(stack, old, Factors(left, right), is_singular.bool())
            if is_carried:
                self._keep("exp_avg", stack, Factors(*average))

    def _direction(self, stack: Stack, group: dict[str, Any]) -> Factors:
        """Update the moments; what Adam would subtract from each factor, lr aside."""
        beta1, beta2 = group["betas"]
        gradient = stack.gradients()
        first = blend(self._averages("exp_avg", stack), gradient, beta1)
        second = blend(self._averages("exp_avg_sq", stack), Factors(*(grad.square() for grad in gradient)), beta2)
        self._keep("exp_avg", stack, first)
        self._keep("exp_avg_sq", stack, second)
        for count in self._steps([*stack.lefts, *stack.rights]):
            count += 1
        steps = torch.stack(self._steps(stack.lefts))[:, None, None].to(gradient.left.dtype)
        scale, bias = _one_minus_power(beta1, steps), _one_minus_power(beta2, steps)
        return Factors(*(m / scale / ((v / bias).sqrt() + group["eps"]) for m, v in zip(first, second, strict=True)))

    def _refresh(self, group: dict[str, Any]) -> None:
        carried = group["factors"] and group["momentum"] == "tangent"
        for index, param in enumerate(group["params"]):
            state = self.state[param]
            if "exp_avg_sq" in state and carried:
                _forget_basis(state["exp_avg_sq"], is_left=index % 2 == 0)
            elif "exp_avg_sq" in state:
                for name in ("step", "exp_avg", "exp_avg_sq"):
                    state[name].zero_()


def _change_basis(*stack: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
    """From factors, directions and perhaps first moments to new factors, what was singular, and moments to match."""
    old, direction = Factors(*stack[:2]), Factors(*stack[2:4])
    point, damping = decompose(old), group["damping"]
    if group["loro_type"] == "rebalance":
        new = balance(point)
    else:
        lr_scale = group["lr_scale"] if group["scale_exact"] else 1.0
        new = exact_step(point, direction, group["lr"], group["weight_decay"], lr_scale, damping)
    if len(stack) == 4:
        return *new, point.is_singular.to(torch.uint8)
    # Moments hold raw gradients, which need no more damping than rounding does.
    moments = project(point, Factors(*stack[4:]), min(damping, DAMPING))
    return *new, point.is_singular.to(torch.uint8), *as_gradient(point, moments, new)


def _forget_basis(second_moment: Tensor, *, is_left: bool) -> None:
    """Replace a factor's second moments by their mean over the rank, which a rotation of the basis leaves alone.

    Wiped, they would make the next update an old first moment over the root of a single new square: thousands of times
    too long.
    """
    second_moment.copy_(second_moment.mean(1 if is_left else 0, keepdim=True).expand_as(second_moment))


class LOROMuon(FactorOptimizer):
    """Muon on the manifold of fixed-rank matrices: `manifold_muon_step` on each pair, at each update.

    The momentum is an average of raw gradients, kept as the pair (X right^T, left^T X) at the present factors and
    carried along by projection when these move. Pairs of one shape are stepped together, divided among the processes of
    a `torch.distributed` group. `lr` is in Adam's scale: the update of a matrix of full rank would have an RMS of
    0.2 lr.

    Args:
        params: groups of parameters, see `factor_groups`.
        lr: learning rate.
        beta: decay of the momentum; the step looks ahead as Nesterov's does.
        betas, eps: AdamW's, for what is not factored.
        weight_decay: part of W taken off a step, times lr.

    Raises:
        ConfigError: a group of factors that does not hold pairs.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 7e-3,
        beta: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, betas=betas, eps=eps, weight_decay=weight_decay)

    def _step_factors(self, group: dict[str, Any]) -> None:
        for stack in stacks(group["params"]):
            old, gradient = stack.factors(), stack.gradients()
            momentum = blend(self._averages("momentum", stack), gradient, group["beta"])
            ahead = blend(momentum, gradient, group["beta"])
            left, right, is_singular, *carried = divided(partial(_muon, group=group), *old, *momentum, *ahead)
            self._write(stack, old, Factors(left, right), is_singular.bool())
            self._keep("momentum", stack, Factors(*carried))


def _muon(*stack: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
    """From factors, momentum and look ahead to new factors, what was singular, and the momentum carried along."""
    old, momentum, ahead = map(Factors, stack[::2], stack[1::2])
    new, carried, is_singular = manifold_muon_step(old, momentum, ahead, group["lr"], group["weight_decay"])
    return *new, is_singular.to(torch.uint8), *carried


class Spectron(FactorOptimizer):
    """Spectron: orthogonalised momentum on each factor, its step bounded by the factors' spectral norms.

    Nothing recovers a direction that both factors have lost, as neither gets a gradient there; a pair with such a zero
    column and zero row is counted at each update.
    Source: Janson, Oyallon and Belilovsky, arXiv:2602.12429; the step itself is `update.spectron_step`, divided among
    processes as LOROMuon's is.

    Args:
        params: groups of parameters, see `factor_groups`.
        lr: about the largest change of W a step, in spectral norm.
        beta: decay of the momentum.
        betas, eps: AdamW's, for what is not factored.
        weight_decay: part of each factor taken off a step, times its step.

    Raises:
        ConfigError: a group of factors that does not hold pairs.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 5e-2,
        beta: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, beta=beta, betas=betas, eps=eps, weight_decay=weight_decay)

    def _step_factors(self, group: dict[str, Any]) -> None:
        for stack in stacks(group["params"]):
            old = stack.factors()
            momentum = blend(self._averages("momentum", stack), stack.gradients(), group["beta"])
            probes = [stacked(self._probes(side)).unsqueeze(-1) for side in stack.sides]
            left, right, *probes = divided(partial(_spectron, group=group), *old, *momentum, *probes)
            is_lost = ~(old.left.any(-2) | old.right.any(-1))
            self._write(stack, old, Factors(left, right), is_lost.any(-1))
            self._keep("momentum", stack, momentum)
            for side, probe in zip(stack.sides, probes, strict=True):
                spread(self._probes(side), probe.squeeze(-1))

    def _probes(self, side: Sequence[Tensor]) -> list[Tensor]:
        for param in side:
            rank = min(param.shape)
            self.state[param].setdefault("probe", param.new_full((rank,), rank**-0.5))
        return [self.state[param]["probe"] for param in side]


def _spectron(*stack: Tensor, group: dict[str, Any]) -> tuple[Tensor, ...]:
    """From factors, momentum and probes to new factors and probes."""
    old, momentum, probes = map(Factors, stack[::2], stack[1::2])
    new, probes = spectron_step(old, momentum, group["lr"], probes, group["weight_decay"])
    return *new, *probes


def _one_minus_power(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps, without the cancellation that costs float32 four digits at the first steps."""
    return -torch.expm1(steps * (math.log(beta) if beta else -math.inf))
