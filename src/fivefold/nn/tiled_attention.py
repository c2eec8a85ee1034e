"""Attention whose bias needs a gradient, on a CPU: a few heads of one batch row at a time.

Shapes: B batch, H heads, Q queries, K keys, D head_dim.
"""

from typing import Any

import torch
from torch import Tensor

# Scores handled at once: 3 heads of 512 x 512, 3 MB in float32, about a CPU core's level-2 cache.
_TILE_SCORES = 3 * 512 * 512


def tiled_attention(
    q_BHQD: Tensor, k_BHKD: Tensor, v_BHKD: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float
) -> Tensor:
    """softmax(scale * q k^T + bias) v.

    Only the output and the log-sum-exp of each query's scores are kept for the backward pass; it recomputes the
    weights tile by tile and adds the score gradients of all rows into the one bias gradient. Scores of bfloat16 inputs
    are rounded to bfloat16 before the float32 softmax, as T5X does.

    Source: the recomputation of Dao et al. 2022 (arXiv 2205.14135), algorithm 4, without its inner tiling.

    Args:
        bias: [1, H, Q, K] if there is one, -inf forbids a pair.
        visible: [1 or B, 1, 1 or Q, K] bool, False for keys that a query may not see.

    Returns:
        [B, H, Q, D]. A query that may see no key gets zeros.
    """
    return _TiledAttention.apply(q_BHQD, k_BHKD, v_BHKD, bias, visible, scale)


class _TiledAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        log_normalizer = q.new_empty(q.shape[:3], dtype=_wide(q))
        smallest = torch.finfo(torch.float32).min
        for b, h in _tiles(q, k):
            scores = _scores(q, k, bias, visible, scale, b, h)
            # The clamps matter only to queries that see no key: their weights become zeros instead of NaN.
            top = scores.amax(-1, keepdim=True).clamp_(min=smallest)
            weights = scores.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
            out[b, h] = (weights.to(v.dtype) @ v[b, h]).div_(total)
            log_normalizer[b, h] = (top + total.log()).squeeze(-1)
        ctx.save_for_backward(q, k, v, bias, out, log_normalizer, visible)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, bias, out, log_normalizer, visible = ctx.saved_tensors
        scale = ctx.scale
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = None if bias is None else torch.zeros_like(bias, dtype=_wide(q))
        grad_dot_out = (grad_out.to(_wide(q)) * out).sum(-1, keepdim=True)
        for b, h in _tiles(q, k):
            weights = _scores(q, k, bias, visible, scale, b, h).sub_(log_normalizer[b, h].unsqueeze(-1)).exp_()
            grad_scores = (grad_out[b, h] @ v[b, h].mT).to(_wide(q)).sub_(grad_dot_out[b, h]).mul_(weights)
            if grad_bias is not None:
                grad_bias[0, h] += grad_scores
            grad_v[b, h] = weights.to(v.dtype).mT @ grad_out[b, h]
            grad_scores = grad_scores.mul_(scale).to(q.dtype) if scale != 1.0 else grad_scores.to(q.dtype)
            grad_q[b, h] = grad_scores @ k[b, h]
            grad_k[b, h] = grad_scores.mT @ q[b, h]
        return (
            grad_q,
            grad_k,
            grad_v,
            None if grad_bias is None or bias is None else grad_bias.to(bias.dtype),
            None,
            None,
        )


def _tiles(q: Tensor, k: Tensor) -> list[tuple[int, slice]]:
    batch_size, num_heads, query_len, _ = q.shape
    step = max(1, _TILE_SCORES // max(1, query_len * k.shape[2]))
    return [(b, slice(h, h + step)) for b in range(batch_size) for h in range(0, num_heads, step)]


def _scores(
    q: Tensor, k: Tensor, bias: Tensor | None, visible: Tensor | None, scale: float, b: int, h: slice
) -> Tensor:
    """Masked, biased scores of one tile in float32 (or wider), [heads, Q, K]."""
    scores = (q[b, h] @ k[b, h].mT).to(_wide(q))
    if scale != 1.0:
        scores.mul_(scale)
    if bias is not None:
        scores.add_(bias[0, h])
    if visible is not None:
        scores.masked_fill_(~visible[b if visible.shape[0] > 1 else 0], float("-inf"))
    return scores


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
