"""GaLore: Adam in the span of a matrix gradient's strongest directions, AdamW for everything else; one optimizer."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.errors import CheckpointError, ConfigError
from fivefold.optim.adamw import adamw_step
from fivefold.optim.parameters import build_groups, parameter_kinds


class GaLoreAdamW(torch.optim.Optimizer):
    """Gradient low-rank projection on the groups that have a `rank`, `torch.optim.AdamW` on the others.

    A gradient G [m, n] with m >= n becomes G P [m, rank], Adam turns that into a step there, and the step times P^T and
    `scale` moves the matrix; where m < n, P multiplies from the left. P [min(m, n), rank] holds the strongest singular
    vectors of the gradient and is renewed every `update_proj_gap` steps of that matrix; the moments stay.

    Source: Zhao et al. 2024 (arXiv:2403.03507), algorithm 2.
    Differs: from the authors' package, whose projector is no tensor and so keeps a checkpoint from being read safely:
    P comes from a float64 eigendecomposition of the gradient's Gram matrix, where a zero or ill-conditioned gradient
    is harmless, with the largest entry of each vector positive; eps follows and decay precedes the step, as in torch.
    Cost: per matrix 2 max(m, n) rank + min(m, n) rank numbers of state instead of 2 m n. On one CPU thread a renewal
    took 0.1 s for 512 x 1,376 and 5 s for 2,048 x 5,461.

    Args:
        params: groups of parameters, those to be projected with `rank`, `update_proj_gap` and `scale`; see
            `galore_groups`.
        lr: learning rate, in Adam's units; a projected matrix moves by `scale` times as much.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: part of the parameter taken off a step, times lr.
    Raises:
        ConfigError: a rank or gap below 1.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        # `fused` makes torch's load_state_dict put the step count beside the parameter, where the kernel wants it.
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": True})
        for group in self.param_groups:
            for name in ("rank", "update_proj_gap"):
                if "rank" in group and group[name] < 1:
                    raise ConfigError(f"GaLore's {name} is {group[name]}, but it must be 1 or above.")

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
            if "rank" in group:
                _projected_step(params, grads, states, group)
            else:
                adamw_step(params, grads, states, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            CheckpointError: the state is of projections of another rank.
        """
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for param in group["params"] if "rank" in group else []:
                projection, rank = self.state.get(param, {}).get("projection"), min(group["rank"], *param.shape)
                if projection is not None and projection.shape != (min(param.shape), rank):
                    raise CheckpointError(
                        f"The optimizer's state projects a matrix to {projection.shape[-1]} directions, but this run's "
                        f"GaLore to {rank}: resume with the rank that the checkpoint was trained with."
                    )


def galore_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    rank: int,
    update_proj_gap: int = 200,
    scale: float = 0.25,
    dense_lr: float | None = None,
) -> list[dict[str, Any]]:
    """Groups for `GaLoreAdamW`: the hidden matrices, to be projected, then embeddings and output layer, then the rest.

    Args:
        lr: learning rate; the projected matrices move by `scale` times as much.
        weight_decay: of all but norms, biases and relative-position tables.
        rank: kept of each gradient; a matrix with a smaller side keeps all of it.
        update_proj_gap: steps between two projections.
        scale: the paper's alpha.
        dense_lr: of what is not projected; `lr` if None.
    Returns:
        Up to three groups with `lr`, `base_lr` (what `set_lr` multiplies) and `weight_decay`.
    Raises:
        ModelError: no parameter of the model trains.
    """
    hidden, tables, plain = parameter_kinds(model)
    projection = {"rank": rank, "update_proj_gap": update_proj_gap, "scale": scale}
    dense_lr = lr if dense_lr is None else dense_lr
    return build_groups(
        [
            (hidden, lr, weight_decay, projection),
            (tables, dense_lr, weight_decay, {}),
            (plain, dense_lr, 0.0, {}),
        ]
    )


def strongest_directions(grad: Tensor, rank: int) -> Tensor:
    """The singular vectors of the largest singular values, on the smaller side of a matrix (the right one of a square).

    Args:
        grad: finite, [m, n].
        rank: how many; at most min(m, n) are returned.
    Returns:
        Orthonormal columns [min(m, n), rank], strongest first, in the dtype of `grad`.
    """
    tall = (grad if grad.shape[0] >= grad.shape[1] else grad.mT).double()
    # Squares of float32 numbers are exact in float64, so little is lost against an SVD, which also fails more often.
    vectors = torch.linalg.eigh(tall.mT @ tall).eigenvectors[:, -rank:].flip(-1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).to(grad.dtype)


def _projected_step(
    params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
) -> None:
    projected = []
    for grad, state in zip(grads, states, strict=True):
        if state.get("projection_age", group["update_proj_gap"]) >= group["update_proj_gap"]:
            state["projection"], state["projection_age"] = strongest_directions(grad, group["rank"]), 0
        state["projection_age"] += 1
        is_tall = grad.shape[0] >= grad.shape[1]
        projected.append(grad @ state["projection"] if is_tall else state["projection"].mT @ grad)
    # AdamW moves zeros, with rate 1 and without decay, to minus the step that it would make.
    moves = [torch.zeros_like(grad) for grad in projected]
    adamw_step(moves, projected, states, group | {"lr": 1.0, "weight_decay": 0.0})
    for param, move, state in zip(params, moves, states, strict=True):
        param.mul_(1 - group["lr"] * group["weight_decay"])
        left, right = (move, state["projection"].mT) if len(param) >= param.shape[1] else (state["projection"], move)
        param.addmm_(left, right, alpha=group["lr"] * group["scale"])
