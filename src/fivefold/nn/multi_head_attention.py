"""Multi-head attention as a layer, plain and with each way of telling positions.

Shapes: B batch, T tokens of x, S tokens of the memory, C width, H heads, J key heads, D head_dim.
"""

from typing import Any

from torch import Tensor, nn

from fivefold.errors import ModelError
from fivefold.nn.alibi import AdaptiveALiBi, ALiBi
from fivefold.nn.attention import Kernel, attention, check_kernel
from fivefold.nn.norms import RMSNorm
from fivefold.nn.rope import RoPE, Scaling


class MultiHeadAttention(nn.Module):
    """o_proj(softmax(q k^T / sqrt(D) + bias) v), with q from x and k, v from x or a memory, head by head.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.2.2; fewer heads of keys and values: Ainslie et al. 2023
    (arXiv 2305.13245); normalised queries and keys: Dehghani et al. 2023 (arXiv 2302.05442), section 2. Parameter names
    are those of Llama's checkpoints, by which adapters and low-rank conversion find them.
    Differs: a memory (cross-attention) gets no positions: those of two sequences have no common origin.

    Args:
        dim: C, width of input and output.
        num_heads: H.
        num_key_value_heads: J, which divides H; H if None.
        head_dim: D; C / H if None.
        position: `RoPE` for D channels, `ALiBi` or `AdaptiveALiBi` for H heads.
        is_causal: a token sees none behind it.
        qk_norm: RMSNorm over each head's queries and keys.
        bias: whether the projections have one.
        dropout_rate: on the attention weights.
        kernel: see `attention`.

    Raises:
        ModelError: heads that do not divide, or no such kernel.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        position: RoPE | ALiBi | AdaptiveALiBi | None = None,
        is_causal: bool = False,
        qk_norm: bool = False,
        bias: bool = False,
        dropout_rate: float = 0.0,
        kernel: Kernel = "auto",
    ) -> None:
        super().__init__()
        key_heads = num_heads if num_key_value_heads is None else num_key_value_heads
        if min(num_heads, key_heads) < 1 or num_heads % key_heads:
            raise ModelError(f"{num_heads} heads cannot share {key_heads} key heads; the second must divide the first.")
        if head_dim is None and dim % num_heads:
            raise ModelError(f"{dim} channels do not divide into {num_heads} heads; give head_dim or another number.")
        check_kernel(kernel)
        self.head_dim = head_dim or dim // num_heads
        self.q_proj = nn.Linear(dim, num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, key_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, key_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * self.head_dim, dim, bias=bias)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.position = position
        self.is_causal = is_causal
        self.dropout_rate = dropout_rate
        self.kernel: Kernel = kernel

    def forward(
        self,
        x_BTC: Tensor,
        memory: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        segments: Tensor | None = None,
        memory_segments: Tensor | None = None,
    ) -> Tensor:
        """[B, T, C] to [B, T, C].

        Args:
            memory: [B, S, C], attended to in place of x.
            key_mask: [B, T], or [B, S] with a memory: bool, False for padding.
            segments: [B, T] integers, the example that each token of a packed row belongs to.
            memory_segments: [B, S], the same for a memory.

        Raises:
            ModelError: shapes that do not fit, or more tokens than the positions are made for.
        """
        source = x_BTC if memory is None else memory
        q, k, v = self._heads(self.q_proj(x_BTC)), self._heads(self.k_proj(source)), self._heads(self.v_proj(source))
        q, k = self.q_norm(q), self.k_norm(k)
        bias = None
        if memory is None and isinstance(self.position, RoPE):
            q, k = self.position(q, k)
        elif memory is None and self.position is not None:
            bias = self.position(x_BTC.shape[1], x_BTC.shape[1])
        out = attention(
            *(q, k, v),
            bias=bias,
            key_mask=key_mask,
            query_segments=segments,
            key_segments=segments if memory is None else memory_segments,
            is_causal=self.is_causal and memory is None,
            scale=self.head_dim**-0.5,
            dropout_rate=self.dropout_rate if self.training else 0.0,
            kernel=self.kernel,
        )
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class RoPEAttention(MultiHeadAttention):
    """Multi-head attention with rotated queries and keys.

    Args:
        dim: as for `MultiHeadAttention`.
        num_heads: as for `MultiHeadAttention`.
        max_seq_length: as for `RoPE`.
        base: as for `RoPE`.
        scaling: as for `RoPE`.
        factor: as for `RoPE`.
        settings: the rest of `MultiHeadAttention`'s.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        max_seq_length: int = 2048,
        *,
        base: float = 10000.0,
        scaling: Scaling = "none",
        factor: float = 1.0,
        **settings: Any,
    ) -> None:
        super().__init__(dim, num_heads, **settings)
        self.position = RoPE(self.head_dim, max_seq_length, base, scaling=scaling, factor=factor)


class ALiBiAttention(MultiHeadAttention):
    """Multi-head attention whose scores fall linearly with distance, in both directions.

    Args:
        dim: as for `MultiHeadAttention`.
        num_heads: as for `MultiHeadAttention`.
        after_factor: as for `ALiBi`: anything but 1 tells left from right.
        is_adaptive: slopes are trained, see `AdaptiveALiBi`.
        settings: the rest of `MultiHeadAttention`'s.
    """

    def __init__(
        self, dim: int, num_heads: int, *, after_factor: float = 0.5, is_adaptive: bool = False, **settings: Any
    ) -> None:
        super().__init__(dim, num_heads, **settings)
        if is_adaptive:
            self.position = AdaptiveALiBi(num_heads, is_bidirectional=not self.is_causal)
        else:
            self.position = ALiBi(num_heads, after_factor=after_factor)


class CausalALiBiAttention(ALiBiAttention):
    """Multi-head attention as in the paper: scores fall linearly with distance, and no token sees one behind it."""

    def __init__(self, dim: int, num_heads: int, *, is_adaptive: bool = False, **settings: Any) -> None:
        super().__init__(dim, num_heads, is_adaptive=is_adaptive, is_causal=True, **settings)


class FlashMHA(MultiHeadAttention):
    """Multi-head attention that never holds more than a block of scores: the kernel "flash"."""

    def __init__(self, dim: int, num_heads: int, **settings: Any) -> None:
        super().__init__(dim, num_heads, kernel="flash", **settings)
