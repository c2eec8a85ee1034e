"""activation(gate) * up: what every gated feed-forward layer computes between its projections.

Source: Shazeer 2020 (arXiv 2002.05202).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Activation = Callable[[Tensor], Tensor]


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _identity(x: Tensor) -> Tensor:
    return x


# Names as Hugging Face configurations write them; "gelu" there means the tanh form for T5 ("gelu_new").
ACTIVATIONS: dict[str, Activation] = {
    "relu": F.relu,
    "gelu": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "linear": _identity,
}


def swiglu(gate: Tensor, up: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """silu(gate) * up, where silu(x) = x * sigmoid(x); only gate and up are kept for the backward pass.

    Source: equation 5 of the paper, with beta = 1 and the two projections already done.

    Args:
        gate: [..., D], any floating type; computed in float32 or wider, silu(gate) and the product rounded to `dtype`.
        up: [..., D].
        dtype: of the product, to which gate and up are widened without being stored so; their common type if None.

    Returns:
        [..., D].
    """
    return gated_product(gate, up, F.silu, dtype)


def gated_product(gate: Tensor, up: Tensor, activation: Activation, dtype: torch.dtype | None = None) -> Tensor:
    """activation(gate) * up, where backward recomputes activation(gate) if keeping it would cost a third tensor.

    That is so for SiLU and GELU, whose derivatives need the gate itself: autograd keeps gate, activation(gate) and up.
    The derivatives of sigmoid and ReLU need only their result, so that autograd keeps two tensors by itself.

    Args:
        gate: [..., D], any floating type.
        up: [..., D].
        activation: a value of `ACTIVATIONS`, or any other function from one tensor to one like it.
        dtype: as for `swiglu`.

    Returns:
        [..., D].
    """
    dtype = dtype or torch.promote_types(gate.dtype, up.dtype)
    if activation in _DERIVATIVES and torch.is_grad_enabled():
        return _GatedProduct.apply(gate, up, activation, dtype)
    return activation(gate.to(dtype)) * up.to(dtype)


class _GatedProduct(torch.autograd.Function):
    """With y = act(g) * u: dL/du = dL/dy * act(g), dL/dg = dL/dy * u * act'(g). Saves g and u, in their own types."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gate: Tensor, up: Tensor, activation: Activation, dtype: torch.dtype) -> Tensor:
        return activation(gate.to(dtype)) * up.to(dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        gate, up, ctx.activation, _ = inputs
        ctx.save_for_backward(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gate, up = ctx.saved_tensors
        wide_gate = gate.to(grad.dtype)
        grad_gate = _DERIVATIVES[ctx.activation](grad * up.to(grad.dtype), wide_gate)
        grad_up = grad * ctx.activation(wide_gate)
        return grad_gate, grad_up, None, None  # autograd turns each into its input's type


def _silu_derivative(grad: Tensor, x: Tensor) -> Tensor:
    """grad * s * (1 + x * (1 - s)), where s = sigmoid(x)."""
    if not torch.is_grad_enabled():
        return torch.ops.aten.silu_backward(grad, x)  # one pass, float32 inside; it has no derivative of its own
    sigmoid = x.sigmoid()
    return grad * sigmoid * (1 + x * (1 - sigmoid))


def _gelu_tanh_derivative(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, x, approximate="tanh")


_DERIVATIVES: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    F.silu: _silu_derivative,
    _gelu_tanh: _gelu_tanh_derivative,
}
