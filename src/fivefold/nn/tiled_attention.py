"""Attention that is trained on a CPU: a few heads at a time, in a core's cache, with a bias that may need a gradient.

Shapes: B batch, H heads, Q queries, K keys, D head_dim, N = B * H.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fivefold.nn.hollow import is_hollow

# Weights handled at once: 3 heads of 512 x 512 in bfloat16, 1.5 MB, about a CPU core's level-2 cache.
_TILE_BYTES = 3 * 512 * 512 * 2


def tiled_attention(
    q_BHQD: Tensor,
    k_BHKD: Tensor,
    v_BHKD: Tensor,
    bias: Tensor | None,
    visible: Tensor | None,
    scale: float,
    dropout_rate: float = 0.0,
) -> Tensor:
    """dropout(softmax(scale * q k^T + bias)) v.

    Only the inputs are kept for the backward pass; it works the weights out again tile by tile, drops the same of them,
    and adds the score gradients of all rows into the one bias gradient. Scores of bfloat16 inputs are rounded to
    bfloat16 before the softmax, whose arithmetic is float32, as in T5X.

    Source: the recomputation of Dao et al. 2022 (arXiv 2205.14135), algorithm 4, without its inner tiling.

    Args:
        bias: [1, H, Q, K] if there is one, -inf forbids a pair.
        visible: [1 or B, 1, 1 or Q, K] bool, False for keys that a query may not see.

    Returns:
        [B, H, Q, D]. A query that may see no key gets zeros.
    """
    # One number of torch's generator stands for all that is dropped, so that both passes can draw it.
    seed = int(torch.randint(1 << 62, ())) if dropout_rate else 0
    return _TiledAttention.apply(q_BHQD, k_BHKD, v_BHKD, bias, visible, scale, dropout_rate, seed)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        visible: Tensor | None,
        scale: float,
        dropout_rate: float,
        seed: int,
    ) -> Tensor:
        ctx.save_for_backward(q, k, v, bias, visible)
        ctx.rest = scale, dropout_rate, seed
        tiles = _Tiles(q, k, bias, visible, *ctx.rest)
        v_NKD = v.reshape(-1, *v.shape[2:])
        out_NQD = torch.empty_like(tiles.q)
        for tile, weights, kept in tiles:
            torch.bmm(weights if kept is None else weights.mul_(kept), v_NKD[tile], out=out_NQD[tile])
        return out_NQD.view(q.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, bias, visible = ctx.saved_tensors
        tiles = _Tiles(q, k, bias, visible, *ctx.rest)
        v_NKD, grad_NQD = v.reshape(-1, *v.shape[2:]), grad_out.reshape(-1, *q.shape[2:])
        grad_q, grad_k, grad_v = torch.empty_like(tiles.q), torch.empty_like(tiles.k), torch.empty_like(v_NKD)
        wide = torch.promote_types(q.dtype, torch.float32)
        grad_bias = None if bias is None else torch.zeros(bias.shape[1:], dtype=wide)
        scale = ctx.rest[0]
        for tile, weights, kept in tiles:
            grad_weights = grad_NQD[tile] @ v_NKD[tile].mT
            dropped = weights
            if kept is not None:
                grad_weights.mul_(kept)
                dropped = weights * kept
            torch.bmm(dropped.mT, grad_NQD[tile], out=grad_v[tile])
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, q.dtype)
            if grad_bias is not None:
                of_heads = grad_bias[tiles.heads(tile)]
                for of_row in grad_scores.split(len(of_heads)):
                    of_heads += of_row
            torch.baddbmm(grad_q[tile], grad_scores, tiles.k[tile], beta=0, alpha=scale, out=grad_q[tile])
            torch.baddbmm(grad_k[tile], grad_scores.mT, tiles.q[tile], beta=0, alpha=scale, out=grad_k[tile])
        if bias is not None and grad_bias is not None:
            grad_bias = grad_bias.unsqueeze(0).to(bias.dtype)
        return grad_q.view(q.shape), grad_k.view(k.shape), grad_v.view(v.shape), grad_bias, *(None,) * 4


class _Tiles:
    """The attention weights of N = B * H heads, tile after tile."""

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | None,
        visible: Tensor | None,
        scale: float,
        dropout_rate: float,
        seed: int,
    ) -> None:
        self.q, self.k = (x.reshape(-1, *x.shape[2:]) for x in (q, k))
        self.num_heads, self.scale = q.shape[1], scale
        self.bias, self.hidden = None if bias is None else bias[0].to(q.dtype), None if visible is None else ~visible
        self.dropout_rate = dropout_rate
        self.generator = torch.Generator().manual_seed(seed) if dropout_rate else None
        # A tile is a part of one row's heads, or some rows' heads.
        fitting = max(1, _TILE_BYTES // max(1, q.shape[2] * k.shape[2] * q.element_size()))
        self.step = fitting // self.num_heads * self.num_heads
        if not self.step:
            self.step = next(step for step in range(fitting, 0, -1) if self.num_heads % step == 0)
        may_hide = bias is not None and (is_hollow(bias) or bool(bias.isneginf().any()))
        self.may_be_blind = visible is not None or may_hide

    def heads(self, tile: slice) -> slice:
        """Those of the bias that a tile's first row has."""
        first = tile.start % self.num_heads
        return slice(first, min(first + self.step, self.num_heads))

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
        """Each tile, its weights [step, Q, K], and with dropout what each of them is multiplied by."""
        buffer = self.q.new_empty(min(self.step, len(self.q)), self.q.shape[1], self.k.shape[1])
        for start in range(0, len(self.q), self.step):
            tile = slice(start, min(start + self.step, len(self.q)))
            weights = self._weights(tile, buffer[: tile.stop - start])
            kept = None
            if self.dropout_rate:
                kept = torch.empty_like(weights).bernoulli_(1 - self.dropout_rate, generator=self.generator)
                kept.div_(1 - self.dropout_rate)
            yield tile, weights, kept

    def _weights(self, tile: slice, scores: Tensor) -> Tensor:
        beta = 0
        if self.bias is not None:
            bias = self.bias[self.heads(tile)]
            scores.unflatten(0, (-1, len(bias))).copy_(bias)
            beta = 1
        torch.baddbmm(scores, self.q[tile], self.k[tile].mT, beta=beta, alpha=self.scale, out=scores)
        if self.hidden is not None:
            rows = slice(tile.start // self.num_heads, (tile.stop - 1) // self.num_heads + 1)
            hidden = self.hidden if len(self.hidden) == 1 else self.hidden[rows]
            scores.unflatten(0, (rows.stop - rows.start, -1)).masked_fill_(hidden, float("-inf"))
        if not self.may_be_blind:
            return torch.softmax(scores, -1, out=scores)
        is_blind = scores.amax(-1, keepdim=True).isneginf()
        return torch.softmax(scores, -1, out=scores).masked_fill_(is_blind, 0.0)
