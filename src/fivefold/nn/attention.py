"""Scaled dot-product attention with an additive bias: one function, the kernel chosen by what is asked.

Shapes: B batch, H heads, Q queries, K keys, D head_dim.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores handled at once by the tiled kernel: 3 heads of 512 x 512, 3 MB in float32, about a CPU core's level-2 cache.
_TILE_SCORES = 3 * 512 * 512


def attention(
    q_BHQD: Tensor,
    k_BHKD: Tensor,
    v_BHKD: Tensor,
    *,
    bias: Tensor | None = None,
    key_mask: Tensor | None = None,
    scale: float = 1.0,
    dropout_rate: float = 0.0,
) -> Tensor:
    """softmax(scale * q k^T + bias) v, over the keys that `key_mask` allows.

    Without a bias this is torch's fused kernel. A bias that needs a gradient would send torch's CPU kernel down its
    slow path (it writes every [B, H, Q, K] score and its gradient); there the work is done in cache-sized tiles.

    Args:
        bias: [1, H, Q, K], added to the scores; -inf forbids a pair (a causal mask goes in here).
        key_mask: [B, K] bool, False for keys that no query of that row may see (padding).
        dropout_rate: applied to the attention weights; callers pass 0 outside training.

    Returns:
        [B, H, Q, D]. A query that may see no key gets zeros.
    """
    if (
        bias is not None
        and bias.requires_grad
        and torch.is_grad_enabled()
        and not q_BHQD.is_cuda
        and dropout_rate == 0.0
    ):
        return _TiledAttention.apply(q_BHQD, k_BHKD, v_BHKD, bias, key_mask, scale)
    mask = None if key_mask is None else key_mask[:, None, None, :]
    if bias is not None:
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        mask = mask.to(q_BHQD.dtype)
    return F.scaled_dot_product_attention(q_BHQD, k_BHKD, v_BHKD, attn_mask=mask, dropout_p=dropout_rate, scale=scale)


class _TiledAttention(torch.autograd.Function):
    """Attention with the gradient of its bias, a few heads of one batch row at a time.

    Only the output and the log-sum-exp of each query's scores are kept for the backward pass; it recomputes the
    weights tile by tile and adds the score gradients of all rows into the one bias gradient. Scores of bfloat16 inputs
    are rounded to bfloat16 before the float32 softmax, as T5X does.

    Source: the recomputation of Dao et al. 2022 (arXiv 2205.14135), algorithm 4, without its inner tiling.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor, key_mask: Tensor | None, scale: float
    ) -> Tensor:
        out = torch.empty_like(q)
        log_normalizer = q.new_empty(q.shape[:3], dtype=_wide(q))
        smallest = torch.finfo(torch.float32).min
        for b, h in _tiles(q, k):
            scores = _scores(q, k, bias, key_mask, scale, b, h)
            # The clamps matter only to queries that see no key: their weights become zeros instead of NaN.
            top = scores.amax(-1, keepdim=True).clamp_(min=smallest)
            weights = scores.sub_(top).exp_()
            total = weights.sum(-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
            out[b, h] = (weights.to(v.dtype) @ v[b, h]).div_(total)
            log_normalizer[b, h] = (top + total.log()).squeeze(-1)
        ctx.save_for_backward(q, k, v, bias, out, log_normalizer, *([] if key_mask is None else [key_mask]))
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, bias, out, log_normalizer, *rest = ctx.saved_tensors
        key_mask, scale = (rest[0] if rest else None), ctx.scale
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        grad_bias = torch.zeros_like(bias, dtype=_wide(q))
        grad_dot_out = (grad_out.to(_wide(q)) * out).sum(-1, keepdim=True)
        for b, h in _tiles(q, k):
            weights = _scores(q, k, bias, key_mask, scale, b, h).sub_(log_normalizer[b, h].unsqueeze(-1)).exp_()
            grad_scores = (grad_out[b, h] @ v[b, h].mT).to(_wide(q)).sub_(grad_dot_out[b, h]).mul_(weights)
            grad_bias[0, h] += grad_scores
            grad_v[b, h] = weights.to(v.dtype).mT @ grad_out[b, h]
            grad_scores = grad_scores.mul_(scale).to(q.dtype) if scale != 1.0 else grad_scores.to(q.dtype)
            grad_q[b, h] = grad_scores @ k[b, h]
            grad_k[b, h] = grad_scores.mT @ q[b, h]
        return grad_q, grad_k, grad_v, grad_bias.to(bias.dtype), None, None


def _tiles(q: Tensor, k: Tensor) -> list[tuple[int, slice]]:
    batch_size, num_heads, query_len, _ = q.shape
    step = max(1, _TILE_SCORES // max(1, query_len * k.shape[2]))
    return [(b, slice(h, h + step)) for b in range(batch_size) for h in range(0, num_heads, step)]


def _scores(q: Tensor, k: Tensor, bias: Tensor, key_mask: Tensor | None, scale: float, b: int, h: slice) -> Tensor:
    """Masked, biased scores of one tile in float32 (or wider), [heads, Q, K]."""
    scores = (q[b, h] @ k[b, h].mT).to(_wide(q))
    if scale != 1.0:
        scores.mul_(scale)
    scores.add_(bias[0, h])
    if key_mask is not None:
        scores.masked_fill_(~key_mask[b], float("-inf"))
    return scores


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
