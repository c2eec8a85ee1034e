"""ALiBi: attention scores fall linearly with distance, with a steeper or flatter slope for each head."""

import torch
from torch import Tensor, nn

from fivefold.errors import ModelError


def alibi_slopes(num_heads: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Slope of each head, [H]: 2^(-8i / H) for i = 1..H.

    Source: Press et al. 2022 (arXiv 2108.12409), section 3; where H is no power of two, the slopes of the next smaller
    power and then every other slope of the next larger one, as in the authors' program.
    """
    power = 1 << (num_heads.bit_length() - 1)
    steps = torch.arange(num_heads, dtype=dtype, device=device)
    return torch.exp2(torch.cat([steps[:power] + 1, steps[: num_heads - power] + 0.5]) * (-8 / power))


def alibi_bias(relative_position: Tensor, slopes_before: Tensor, slopes_after: Tensor) -> Tensor:
    """-slope * distance, with one set of slopes for keys before the query and one for keys after it.

    Args:
        relative_position: integers [..., Q, K], key position minus query position.
        slopes_before: [H].
        slopes_after: [H].

    Returns:
        [..., H, Q, K] in the slopes' dtype.
    """
    relative = relative_position.unsqueeze(-3).to(slopes_before.dtype)
    before, after = slopes_before[:, None, None], slopes_after[:, None, None]
    return torch.addcmul(before * relative.clamp(max=0), after, relative.clamp(min=0), value=-1)


class ALiBi(nn.Module):
    """Fixed linear biases, laid out as a matrix to add to attention scores.

    Source: Press et al. 2022 (arXiv 2108.12409), section 3.
    Differs: the paper is causal; here keys after the query get -slope * distance as well. A causal mask hides them, and
    an encoder needs them. Symmetric slopes (`after_factor` 1, the common choice for encoders) cannot tell left from
    right: an encoder with nothing else turns reversed text into the same states reversed, and a decoder that sees them
    through cross-attention never learns the order. Another factor breaks the tie; `AdaptiveALiBi` learns to.

    Args:
        num_heads: H.
        after_factor: slopes for keys after the query, as a multiple of those before it.
    """

    like: Tensor

    def __init__(self, num_heads: int, *, after_factor: float = 1.0) -> None:
        super().__init__()
        _check_num_heads(num_heads)
        if not after_factor > 0:
            raise ModelError(f"ALiBi got after_factor={after_factor}; give a number above 0 (1 is symmetric).")
        self.num_heads = num_heads
        self.after_factor = after_factor
        # Empty: it only knows device and dtype. Slopes here would be rounded by .bfloat16() and lost by .to_empty().
        self.register_buffer("like", torch.empty(0), persistent=False)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Slopes for keys before and after the query, each [H], float32 or wider."""
        wide = torch.promote_types(self.like.dtype, torch.float32)
        slopes = alibi_slopes(self.num_heads, device=self.like.device, dtype=wide)
        return slopes, self.after_factor * slopes

    def forward(
        self,
        query_len: int,
        key_len: int,
        first_query: int = 0,
        *,
        query_positions: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """Bias of queries first_query..first_query+query_len-1 towards keys 0..key_len-1, or of the positions given.

        Args:
            query_positions: integers [Q] or [B, Q] instead: packed examples, each counted from 0, or left padding.
            key_positions: integers [K] or [B, K] instead.

        Returns:
            [1, H, Q, K], or [B, H, Q, K] for positions of a batch; in the module's dtype.

        Raises:
            ModelError: positions of another length.
        """
        relative = _relative_position(
            query_len, key_len, first_query, query_positions, key_positions, device=self.like.device
        )
        return alibi_bias(relative, *self.slopes()).to(self.like.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_heads}, after_factor={self.after_factor}"


class AdaptiveALiBi(nn.Module):
    """ALiBi with trainable slopes: the paper's times exp(log_stretch), trained from 0, so they stay positive.

    Source: Press et al. 2022 (arXiv 2108.12409), section 3, where trained slopes did not extrapolate well.
    Differs: trained as logarithms; an encoder has a set for each side, and so learns to tell left from right.

    Args:
        num_heads: H.
        is_bidirectional: train slopes for keys before and for keys after the query: `log_stretch` is [2H], not [H].
    """

    def __init__(self, num_heads: int, *, is_bidirectional: bool = False) -> None:
        super().__init__()
        _check_num_heads(num_heads)
        self.num_heads = num_heads
        self.is_bidirectional = is_bidirectional
        # One dimension, as gains and biases: a matrix would be orthogonalised by Muon and decayed.
        self.log_stretch = nn.Parameter(torch.zeros((1 + is_bidirectional) * num_heads))

    def reset_parameters(self) -> None:
        """Put the slopes back to the paper's, also after `.to_empty()`."""
        nn.init.zeros_(self.log_stretch)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Slopes for keys before and after the query, each [H], float32 or wider."""
        log_stretch = self.log_stretch.to(torch.promote_types(self.log_stretch.dtype, torch.float32))
        slopes = alibi_slopes(self.num_heads, device=log_stretch.device, dtype=log_stretch.dtype)
        slopes = slopes * log_stretch.view(-1, self.num_heads).exp()
        return slopes[0], slopes[-1]

    def forward(
        self,
        query_len: int,
        key_len: int,
        first_query: int = 0,
        *,
        query_positions: Tensor | None = None,
        key_positions: Tensor | None = None,
    ) -> Tensor:
        """As `ALiBi.forward`; the bias carries the slopes' gradient."""
        relative = _relative_position(
            query_len, key_len, first_query, query_positions, key_positions, device=self.log_stretch.device
        )
        return alibi_bias(relative, *self.slopes()).to(self.log_stretch.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_heads}, is_bidirectional={self.is_bidirectional}"


def _check_num_heads(num_heads: int) -> None:
    if num_heads < 1:
        raise ModelError(f"ALiBi got num_heads={num_heads}; give at least 1.")


def _relative_position(
    query_len: int,
    key_len: int,
    first_query: int,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    *,
    device: torch.device,
) -> Tensor:
    """Key position minus query position, [1 or B, Q, K]."""
    if query_positions is None:
        query_positions = torch.arange(first_query, first_query + query_len, device=device)
    if key_positions is None:
        key_positions = torch.arange(key_len, device=device)
    for name, positions, length in (("query", query_positions, query_len), ("key", key_positions, key_len)):
        if positions.dim() not in (1, 2) or positions.shape[-1] != length or positions.is_floating_point():
            raise ModelError(
                f"ALiBi got {name}_positions {tuple(positions.shape)} of {positions.dtype} for {length} tokens; give "
                f"integers [{length}] or [batch, {length}]."
            )
    relative = key_positions.unsqueeze(-2) - query_positions.unsqueeze(-1)
    return relative if relative.dim() == 3 else relative.unsqueeze(0)
