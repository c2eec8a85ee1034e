"""Gated linear units: activation(gate) * up, alone, in a feed-forward layer and in a multi-layer perceptron.

Source of everything here: Shazeer 2020 (arXiv 2002.05202).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fivefold.errors import ModelError
from fivefold.nn.feed_forward import float32_linear
from fivefold.nn.gated_product import ACTIVATIONS, Activation, gated_product, swiglu

# Equations 4 and 5. GELU in its tanh form, the one T5's code and checkpoints use; the paper writes the erf form.
GLU_ACTIVATIONS: dict[str, Activation] = {
    "glu": ACTIVATIONS["sigmoid"],
    "bilinear": ACTIVATIONS["linear"],
    "reglu": ACTIVATIONS["relu"],
    "geglu": ACTIVATIONS["gelu_new"],
    "swiglu": ACTIVATIONS["silu"],
}


class SwiGLU(nn.Module):
    """silu(gate) * up of the two halves of the last dimension: the gate comes first, `up` second.

    Differs: `torch.nn.functional.glu` has its gate in the second half.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2 D] to [..., D].

        Raises:
            ModelError: the last dimension is odd.
        """
        if x.shape[-1] % 2:
            raise ModelError(f"SwiGLU halves the last dimension, which is {x.shape[-1]}: make it even.")
        gate, up = x.chunk(2, -1)
        return swiglu(gate, up)


class GLUVariants(nn.Module):
    """down_proj(dropout(activation(gate_proj(x)) * up_proj(x))): the paper's five feed-forward layers.

    Source: equation 6; W is `gate_proj`, V is `up_proj`, W_2 is `down_proj`.
    Differs: dropout, as T5 has it. Where the compute type is float16, the product and `down_proj` run in float32, for
    either overflows at 65504.

    Gate and up are two projections rather than one of twice the width. The names are those of Llama's checkpoints, by
    which adapters and low-rank conversion find them, and a low-rank factor shared by both would tie them together.

    Args:
        dim: width of input and output.
        hidden_dim: inner width.
        variant: a key of `GLU_ACTIVATIONS`.
        bias: whether the three projections have one.
        dropout_rate: on the inner activations.

    Raises:
        ModelError: an unknown variant, a width below 1 or a dropout rate outside [0, 1).
    """

    def __init__(
        self, dim: int, hidden_dim: int, variant: str, *, bias: bool = False, dropout_rate: float = 0.0
    ) -> None:
        super().__init__()
        _check(dropout_rate, dim=dim, hidden_dim=hidden_dim)
        if variant not in GLU_ACTIVATIONS:
            raise ModelError(f"{variant!r} is no gated linear unit: choose one of {', '.join(GLU_ACTIVATIONS)}.")
        self.gate_proj = nn.Linear(dim, hidden_dim, bias=bias)
        self.up_proj = nn.Linear(dim, hidden_dim, bias=bias)
        self.down_proj = nn.Linear(hidden_dim, dim, bias=bias)
        self.variant = variant
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] to [..., dim]."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        is_float16 = gate.dtype == torch.float16
        hidden = gated_product(gate, up, GLU_ACTIVATIONS[self.variant], torch.float32 if is_float16 else None)
        hidden = F.dropout(hidden, self.dropout_rate, self.training)
        return float32_linear(self.down_proj, hidden, x.dtype) if is_float16 else self.down_proj(hidden)

    def extra_repr(self) -> str:
        return f"{self.variant}, dropout_rate={self.dropout_rate}"


class SwiGLUFeedForward(GLUVariants):
    """The SwiGLU feed-forward layer, by default as large as a plain one of inner width 4 * dim.

    Source: equation 6; the width: Touvron et al. 2023 (arXiv 2302.13971), section 2.2: three matrices of 8/3 dim have
    the 8 dim^2 parameters of two of 4 dim. Parameter names are those of transformers' `LlamaMLP`.

    Args:
        dim: width of input and output.
        hidden_dim: inner width; 8/3 dim rounded up to a multiple of `multiple_of` if None.
        multiple_of: 256 in Llama's code; in a small model that adds much: 512 goes to 1408 with 64, to 1536 with 256.
        bias: as for `GLUVariants`.
        dropout_rate: as for `GLUVariants`.

    Raises:
        ModelError: as for `GLUVariants`.
    """

    def __init__(
        self,
        dim: int,
        hidden_dim: int | None = None,
        *,
        multiple_of: int = 64,
        bias: bool = False,
        dropout_rate: float = 0.0,
    ) -> None:
        _check(dropout_rate, dim=dim, multiple_of=multiple_of)
        if hidden_dim is None:
            hidden_dim = -(-8 * dim // (3 * multiple_of)) * multiple_of
        super().__init__(dim, hidden_dim, "swiglu", bias=bias, dropout_rate=dropout_rate)


class SwiGLUMLP(nn.Sequential):
    """A multi-layer perceptron: each hidden layer is silu(W x) * V x and dropout, the last layer is linear.

    Source: equation 5, stacked. With one hidden layer it is equation 6. Neither residuals nor norms: it changes width.
    Differs: W and V are one matrix [W; V], one product instead of two; there is no checkpoint whose names to keep.
    In float16 the product becomes inf above 65504: `SwiGLUFeedForward` guards against that, this does not.

    Args:
        input_dim: size of the last dimension of the input.
        hidden_dims: width of each hidden layer, so that their number is the number of SwiGLUs.
        output_dim: size of the last dimension of the output.
        bias: whether the layers have one.
        dropout_rate: after each hidden layer.

    Raises:
        ModelError: no hidden layer, a width below 1 or a dropout rate outside [0, 1).
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dims: Sequence[int],
        output_dim: int,
        *,
        bias: bool = False,
        dropout_rate: float = 0.0,
    ) -> None:
        if not hidden_dims:
            raise ModelError("SwiGLUMLP got no hidden_dims: give at least one width, or use nn.Linear.")
        _check(dropout_rate, input_dim=input_dim, hidden_dims=min(hidden_dims), output_dim=output_dim)
        layers: list[nn.Module] = []
        for width_in, width_out in zip((input_dim, *hidden_dims), hidden_dims, strict=False):
            layers += [nn.Linear(width_in, 2 * width_out, bias=bias), SwiGLU(), nn.Dropout(dropout_rate)]
        super().__init__(*layers, nn.Linear(hidden_dims[-1], output_dim, bias=bias))


def _check(dropout_rate: float, **dims: int) -> None:
    for name, size in dims.items():
        if size < 1:
            raise ModelError(f"{name} is {size}: it must be at least 1.")
    if not 0 <= dropout_rate < 1:
        raise ModelError(f"dropout_rate is {dropout_rate}: it must be at least 0 and below 1.")
