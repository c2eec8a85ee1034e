"""Muon for the matrices inside a network, AdamW for its embeddings, output layer, norms and biases: one optimizer."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim._muon import DEFAULT_A, DEFAULT_B, DEFAULT_C, DEFAULT_NS_STEPS, EPS, muon

from fivefold.errors import ModelError
from fivefold.optim.adamw import adamw_step
from fivefold.optim.parameters import build_groups, parameter_kinds


class MuonAdamW(torch.optim.Optimizer):
    """`torch.optim.Muon` on the groups with `"muon": True`, `torch.optim.AdamW` on the others.

    Source: Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with the learning rate of Liu et al. 2025
    (arXiv:2502.16982), section 2.2: a matrix of m x n moves by 0.2 lr sqrt(max(m, n)) times an orthogonal one, which
    has the RMS of a step of Adam, so `lr` is in Adam's units in both kinds of group.
    Differs: nothing; both are torch's own functions over the groups' tensors.

    Args:
        params: groups of parameters, those for Muon with `"muon": True`; see `muon_groups`.
        lr: learning rate, in Adam's units.
        momentum: decay of Muon's momentum, of Nesterov's kind.
        betas: decay of AdamW's first and second moment.
        eps: added to the root of AdamW's second moment.
        weight_decay: part of the parameter taken off a step, times lr.
    Raises:
        ModelError: a tensor for Muon is no matrix.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # `fused` makes torch's load_state_dict put the step count beside the parameter, where the kernel wants it.
        super().__init__(params, defaults | {"muon": False, "fused": True})
        for group in self.param_groups:
            for param in group["params"] if group["muon"] else []:
                if param.ndim != 2:
                    raise ModelError(f"Muon moves matrices only, but was given a tensor of shape {tuple(param.shape)}.")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make one step; a closure, if given, recomputes the loss and its gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            grads, states = [param.grad for param in params], [self.state[param] for param in params]
            if group["muon"]:
                _muon_step(params, grads, states, group)
            else:
                adamw_step(params, grads, states, group)
        return loss


def muon_groups(
    model: nn.Module,
    *,
    lr: float,
    dense_lr: float,
    weight_decay: float,
    lr_factors: Mapping[int, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups for `MuonAdamW`: hidden matrices for Muon, then the rest.

    Rows of embeddings and of the output layer are tokens, many of them without a gradient in a batch: orthogonalising
    would move those too.

    Args:
        lr: of the hidden matrices.
        dense_lr: of the rest.
        weight_decay: of all but norms, biases and relative-position tables.
        lr_factors: as in `build_groups`; a T5 wants `query_lr_factors(model)`.
    Returns:
        Up to four groups with `lr`, `base_lr` (what `set_lr` multiplies), `weight_decay` and `muon`.
    Raises:
        ModelError: no parameter of the model trains.
    """
    hidden, tables, plain = parameter_kinds(model)
    return build_groups(
        [
            (hidden, lr, weight_decay, {"muon": True}),
            (tables, dense_lr, weight_decay, {"muon": False}),
            (plain, dense_lr, 0.0, {"muon": False}),
        ],
        lr_factors,
    )


def _muon_step(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    for param, state in zip(params, states, strict=True):
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    muon(
        params,
        grads,
        [state["momentum_buffer"] for state in states],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        nesterov=True,
        ns_coefficients=(DEFAULT_A, DEFAULT_B, DEFAULT_C),
        ns_steps=DEFAULT_NS_STEPS,
        eps=EPS,
        adjust_lr_fn="match_rms_adamw",
        has_complex=False,
    )
