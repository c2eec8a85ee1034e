"""T5's position-wise feed-forward layers, plain and gated."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


# Names as Hugging Face configurations write them; "gelu" there means the tanh form for T5 ("gelu_new").
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": _gelu_tanh,
    "gelu_new": _gelu_tanh,
    "silu": F.silu,
}


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
            self.add_module(name, nn.Linear(d_model, d_ff, bias=False))
        self.wo = nn.Linear(d_ff, d_model, bias=False)
        self.activation = ACTIVATIONS[activation]
        self.is_gated = is_gated
        self.dropout_rate = dropout_rate

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to [..., d_model]."""
        hidden = self.activation(self.wi_0(x) if self.is_gated else self.wi(x))
        if hidden.dtype == torch.float16:
            hidden = hidden.float()
        if self.is_gated:
            hidden = hidden * self.wi_1(x)
        hidden = F.dropout(hidden, self.dropout_rate, self.training)
        if hidden.dtype == torch.float32 and x.dtype == torch.float16:
            with torch.autocast(x.device.type, enabled=False):
                weights = {name: weight.float() for name, weight in self.wo.named_parameters()}
                return functional_call(self.wo, weights, (hidden,))
        return self.wo(hidden)
