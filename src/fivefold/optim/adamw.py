"""AdamW as a function, for optimizers that move some of their tensors in another way."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def adamw_step(params: list[Tensor], grads: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """AdamW in place in torch's fused kernel, on tensors and their states.

    Args:
        params, grads: tensors of the same shapes.
        states: of each tensor `step`, `exp_avg` and `exp_avg_sq`, which are made where they are missing.
        group: with `lr`, `betas`, `eps` and `weight_decay`.
    """
    for param, state in zip(params, states, strict=True):
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
    adamw(
        params,
        grads,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        amsgrad=False,
        maximize=False,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
    )
