"""What optimizers over pairs of factors have in common: groups, state, and AdamW for what is not factored."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from fivefold.errors import CheckpointError, ConfigError
from fivefold.lowrank.convert import factor_pairs
from fivefold.lowrank.stacks import Stack, spread, stacked
from fivefold.lowrank.tangent import Factors
from fivefold.optim.adamw import adamw_step
from fivefold.optim.parameters import build_groups, parameter_kinds


class FactorOptimizer(torch.optim.Optimizer, ABC):
    """A `torch.optim.Optimizer` whose groups with `factors=True` hold pairs: left, right, left, right, ...

    left is [m, r], right [r, n]. The parameters of the other groups are moved by torch's fused AdamW. Pairs of one
    shape are stepped as one stack. All state belongs to parameters, so `state_dict` is an ordinary one.

    Args:
        params: parameters, or groups of them.
        defaults: of the groups; AdamW reads `lr`, `betas`, `eps` and `weight_decay`.

    Raises:
        ConfigError: a group of factors that does not hold pairs.
    """

    def __init__(self, params: Iterable[Tensor] | Iterable[dict], **defaults: Any) -> None:
        # `fused` makes torch's load_state_dict put the step count beside the parameter, where the kernel wants it.
        super().__init__(params, {"factors": False, **defaults, "fused": True})
        for group in self.param_groups:
            if group["factors"]:
                _check_pairs(group["params"])
        self._recovered: dict[torch.device, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch copies and pickles defaults, state and groups alone.
        super().__setstate__(state)
        self._recovered = {}

    def num_recovered(self) -> int:
        """Pairs since the last call that were singular, or nearly so, and whose step was damped or left out."""
        total = sum(int(count) for count in self._recovered.values())
        self._recovered.clear()
        return total

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; a closure, if given, recomputes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["factors"]:
                self._step_factors(group)
            else:
                self._adamw(group["params"], group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            CheckpointError: it is the state of other shapes, of factors of another rank for example, or of an optimizer
                of another kind.
        """
        sizes, own_sizes = (
            [len(group["params"]) for group in groups] for groups in (state_dict["param_groups"], self.param_groups)
        )
        if sizes != own_sizes:
            raise CheckpointError(
                f"The optimizer state is of another model: its groups hold {sizes} tensors, this model's {own_sizes}."
            )
        if missing := {name for group in state_dict["param_groups"] for name in self.defaults.keys() - group.keys()}:
            raise CheckpointError(
                f"The optimizer state is of another optimizer: it says nothing of {', '.join(sorted(missing))}, which "
                f"{type(self).__name__} needs; start without it, or with the optimizer that wrote it."
            )
        params = [param for group in self.param_groups for param in group["params"]]
        for index, state in state_dict["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.ndim > 1 and value.shape != params[index].shape:
                    raise CheckpointError(
                        f"The optimizer state holds {name} of shape {list(value.shape)} for a parameter of shape "
                        f"{list(params[index].shape)}, so it belongs to another model or rank; start without it."
                    )
        super().load_state_dict(state_dict)

    @abstractmethod
    def _step_factors(self, group: dict[str, Any]) -> None:
        """Step all pairs of a group that have gradients."""

    def _finite_pairs(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The pairs whose gradients are finite and not too large to be squared; the others are counted.

        Cost: one more reading of the gradients, a fifth of the kernel's time, and on a GPU a wait for them, as where a
        loop looks at their norm.
        """
        if get_total_norm([param.grad for param in params if param.grad is not None]).isfinite():
            return list(params)
        pairs = list(zip(params[::2], params[1::2], strict=True))
        is_finite = [
            all(param.grad is None or torch.linalg.vector_norm(param.grad).isfinite() for param in pair)
            for pair in pairs
        ]
        self._count(~torch.tensor(is_finite))
        return [param for pair, finite in zip(pairs, is_finite, strict=True) if finite for param in pair]

    def _adamw(self, params: Sequence[Tensor], group: dict[str, Any], lr_scale: float = 1.0) -> None:
        params = [param for param in params if param.grad is not None]
        grads = [param.grad for param in params if param.grad is not None]
        # The kernel decays by lr weight_decay, and lr_scale is of the step alone.
        scaled = {"lr": group["lr"] * lr_scale, "weight_decay": group["weight_decay"] / lr_scale}
        adamw_step(params, grads, [self.state[param] for param in params], group | scaled)

    def _state(self, name: str, params: Sequence[Tensor]) -> list[Tensor]:
        """The state of this name of each parameter, zero at first."""
        for param in params:
            if name not in self.state[param]:
                self.state[param][name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        return [self.state[param][name] for param in params]

    def _steps(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The updates in each parameter's moments, as the kernel counts them."""
        for param in params:
            self.state[param].setdefault("step", torch.zeros((), dtype=torch.float32, device=param.device))
        return [self.state[param]["step"] for param in params]

    def _averages(self, name: str, stack: Stack) -> Factors:
        return Factors(*(stacked(self._state(name, side)) for side in stack.sides))

    def _keep(self, name: str, stack: Stack, values: Factors) -> None:
        """Remember averages, but what is not finite: a single bad gradient would stay in one for ever."""
        for side, value in zip(stack.sides, values, strict=True):
            states = self._state(name, side)
            finite = value.isfinite().flatten(1).all(1)
            spread(states, torch.where(finite[:, None, None], value, stacked(states)))

    def _write(self, stack: Stack, old: Factors, new: Factors, is_singular: Tensor | None = None) -> Factors:
        """Give the pairs their new factors, but where these are not finite leave the old; returns what they have."""
        finite = new.left.isfinite().flatten(1).all(1) & new.right.isfinite().flatten(1).all(1)
        kept = Factors(*(torch.where(finite[:, None, None], now, was) for now, was in zip(new, old, strict=True)))
        for side, value in zip(stack.sides, kept, strict=True):
            spread(side, value)
        self._count(~finite if is_singular is None else ~finite | is_singular)
        return kept

    def _count(self, is_recovered: Tensor) -> None:
        count = is_recovered.sum()
        self._recovered[count.device] = self._recovered.get(count.device, 0) + count


def num_recovered(optimizer: torch.optim.Optimizer) -> int | None:
    """`FactorOptimizer.num_recovered`, or None for any other optimizer."""
    return optimizer.num_recovered() if isinstance(optimizer, FactorOptimizer) else None


def factor_groups(
    model: nn.Module,
    *,
    lr: float,
    dense_lr: float,
    weight_decay: float,
    lr_scale: Callable[[int, int, int], float] = lambda rank, largest_side, hidden_size: 1.0,
    lr_factors: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for a `FactorOptimizer`: pairs of factors, then other matrices, embeddings and output layer, and the rest.

    Args:
        lr: of factors and other matrices inside the network.
        dense_lr: of embeddings, output layer, norms and biases.
        weight_decay: of all but norms, biases and relative-position tables.
        lr_scale: from a pair's rank and larger side and the model's hidden size to the pair's `lr_scale`.
        lr_factors: as in `build_groups`; for a T5, LOROMuon and Spectron want `query_lr_factors(model)`.

    Returns:
        Groups with `lr`, `base_lr` (what `set_lr` multiplies), `weight_decay`, `factors` and `lr_scale`.
    """
    # A T5's configuration calls it d_model, and hidden_size too.
    hidden_size = getattr(getattr(model, "config", None), "hidden_size", 0)
    pairs: dict[float, list[Tensor]] = {}
    layers = {id(layer.left.weight): layer for _, layer in factor_pairs(model)}  # shared factors are one pair
    for layer in layers.values():
        if layer.left.weight.requires_grad and layer.right.weight.requires_grad:
            scale = lr_scale(layer.rank, max(layer.in_features, layer.out_features), hidden_size)
            pairs.setdefault(scale, []).extend((layer.left.weight, layer.right.weight))
    paired = {id(param) for params in pairs.values() for param in params}
    hidden, tables, plain = parameter_kinds(model)
    others = [param for param in hidden if id(param) not in paired]
    dense = {"factors": False, "lr_scale": 1.0}
    return build_groups(
        [
            *((params, lr, weight_decay, {"factors": True, "lr_scale": scale}) for scale, params in pairs.items()),
            (others, lr, weight_decay, dense),
            (tables, dense_lr, weight_decay, dense),
            (plain, dense_lr, 0.0, dense),
        ],
        lr_factors,
    )


def blend(average: Factors, fresh: Factors, beta: float) -> Factors:
    """An average of past gradients with a fresh one in it: beta average + (1 - beta) fresh."""
    return Factors(*(old.lerp(new, 1 - beta) for old, new in zip(average, fresh, strict=True)))


def _check_pairs(params: Sequence[Tensor]) -> None:
    if len(params) % 2:
        raise ConfigError(f"A group of factors holds {len(params)} tensors, but it must hold pairs of left and right.")
    for left, right in zip(params[::2], params[1::2], strict=True):
        is_pair = left.ndim == right.ndim == 2 and left.shape[1] == right.shape[0]
        if not is_pair or left.shape[1] > min(left.shape[0], right.shape[1]):
            raise ConfigError(
                f"A group of factors holds {list(left.shape)} followed by {list(right.shape)}, but it must hold pairs "
                "left [m, r], right [r, n] with r at most m and n: make it with factor_groups."
            )
