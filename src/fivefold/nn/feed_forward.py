"""T5's position-wise feed-forward layers, plain and gated."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fivefold.nn.gated_product import ACTIVATIONS, gated_product
from fivefold.nn.linear import Linear


class FeedForward(nn.Module):
    """wo(dropout(act(wi x))), or gated: wo(dropout(act(wi_0 x) * wi_1 x)).

    Source: Raffel et al. 2020 (arXiv 1910.10683); gated: Shazeer 2020 (arXiv 2002.05202), equation 6.
    Differs: where the compute type is float16, the product and `wo` run in float32: T5's activations overflow there.

    Args:
        d_model: width of input and output.
        d_ff: inner width.
        activation: a key of `ACTIVATIONS`.
        is_gated: parameters are wi_0, wi_1, wo instead of wi, wo.
        dropout_rate: on the inner activations.
    """

    wi: nn.Linear
    wi_0: nn.Linear
    wi_1: nn.Linear

    def __init__(self, d_model: int, d_ff: int, activation: str, *, is_gated: bool, dropout_rate: float = 0.0) -> None:
        super().__init__()
        for name in ("wi_0", "wi_1") if is_gated else ("wi",):
            self.add_module(name, Linear(d_model, d_ff, bias=False))
        self.wo = Linear(d_ff, d_model, bias=False)
        self.activation = ACTIVATIONS[activation]
        self.is_gated = is_gated
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to [..., d_model]."""
        first = self.wi_0(x) if self.is_gated else self.wi(x)
        is_float16 = first.dtype == torch.float16
        wide = torch.float32 if is_float16 else first.dtype
        if self.is_gated:
            hidden = gated_product(first, self.wi_1(x), self.activation, wide)
        else:
            hidden = self.activation(first).to(wide)
        hidden = F.dropout(hidden, self.dropout_rate, self.training)
        return float32_linear(self.wo, hidden, x.dtype) if is_float16 else self.wo(hidden)


def float32_linear(layer: nn.Module, hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """A linear layer, dense or factored, in float32; the result in `dtype`, under autocast in float32."""
    weights = {name: weight.float() for name, weight in layer.named_parameters()}
    is_autocast = torch.is_autocast_enabled(hidden.device.type)
    with torch.autocast(hidden.device.type, enabled=False):
        out = functional_call(layer, weights, (hidden,))
    return out if is_autocast else out.to(dtype)
