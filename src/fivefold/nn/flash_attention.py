"""Exact attention that holds one block of scores at a time: flash attention in plain torch, for any device and mask.

Shapes: B batch, H heads, J heads of the keys and values (H is a multiple of J), Q queries, K keys, D head_dim, E the
values' head_dim. Inside, q and k are the lengths of one block, and the R = H / J heads that share their keys lie
below each other in one matrix, [B, J, R*q, D], so that no key is ever repeated.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fivefold.errors import ModelError


@dataclass(frozen=True)
class BlockBias:
    """A bias worked out block by block, so that no [Q, K] matrix exists: T5's bucket table, ALiBi's slopes.

    Args:
        weight: what the bias is made of, any shape; the only tensor of it that gets a gradient.
        block: (weight, positions of queries [q], positions of keys [k]) to [1 or B, 1 or H, q, k].
    """

    weight: Tensor
    block: Callable[[Tensor, Tensor, Tensor], Tensor]


class DistanceBias(BlockBias):
    """A bias that depends on how far a key stands from its query and on nothing else: T5's, which has an end of it.

    Args:
        weight_HR: [H, 2 * reach + 1]: what a key gets at distances -reach..reach (key minus query), and farther ones as
            the last on their side.
    """

    def __init__(self, weight_HR: Tensor) -> None:
        super().__init__(weight_HR, _block_by_distance)


def _block_by_distance(weight_HR: Tensor, query: Tensor, key: Tensor) -> Tensor:
    reach = weight_HR.shape[1] // 2
    return weight_HR[:, (key - query[:, None]).clamp(-reach, reach) + reach].unsqueeze(0)


def flash_attention(
    q_BHQD: Tensor,
    k_BJKD: Tensor,
    v_BJKE: Tensor,
    *,
    bias: Tensor | BlockBias | None = None,
    key_mask: Tensor | None = None,
    query_segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    is_causal: bool = False,
    first_query: int = 0,
    scale: float = 1.0,
    block_size: int = 128,
) -> Tensor:
    """softmax(scale * q k^T + bias) v over the keys that a query may see, with exact gradients, block by block.

    Source: Dao 2023, FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2; the softmax that mends itself when a
    larger score arrives is Milakov and Gimelshein 2018 (arXiv 1805.02867), algorithm 3.
    Differs: bias, masks and grouped heads; everything in float32 or wider. A query's largest score and its sum are
    kept apart, not as a log-sum-exp: a row of -3.4e38, as other libraries mask, would lose the sum in it.
    No dropout: its mask would have to be drawn again in the backward pass, and T5 pretrains without.

    Args:
        bias: [1 or B, 1 or H, Q, K], or a `BlockBias`; added to the scores, -inf forbids a pair.
        key_mask: [B, K] bool, False for keys that no query of that row may see (padding).
        query_segments: [B, Q] integers, with `key_segments`: a query sees only keys of its own segment (packing).
        key_segments: [B, K] integers.
        is_causal: query i sees keys 0 to first_query + i only; blocks hidden as a whole are not computed.
        first_query: position of the first query among the keys, for a decoder that continues a cache.
        block_size: queries, and keys, of one block.

    Returns:
        [B, H, Q, E] in q's dtype. A query that may see no key gets zeros and gives none a gradient.

    Raises:
        ModelError: shapes or settings that do not fit together.

    Cost: five matrix products a block in the backward pass, two in the forward. Kept in between: q, k, v, the bias, the
    result and two numbers a query and head. At work: a few blocks of scores, [B, H, block_size, block_size] each.
    The gradient cannot be differentiated again; that of `memory_efficient_attention` can.
    """
    masks = (key_mask, query_segments, key_segments, is_causal, first_query)
    weight, scoring = _prepared(q_BHQD, k_BJKD, v_BJKE, bias, *masks, scale, block_size)
    return _FlashAttention.apply(q_BHQD, k_BJKD, v_BJKE, weight, scoring)


def memory_efficient_attention(
    q_BHQD: Tensor,
    k_BJKD: Tensor,
    v_BJKE: Tensor,
    *,
    bias: Tensor | BlockBias | None = None,
    key_mask: Tensor | None = None,
    query_segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    is_causal: bool = False,
    first_query: int = 0,
    scale: float = 1.0,
    block_size: int = 128,
) -> Tensor:
    """What `flash_attention` computes, arguments and all, with torch's own gradient of checkpointed blocks of queries.

    Source: Rabe and Staats 2021 (arXiv 2112.05682), sections 3 and 4.
    Differs: they checkpoint every pair of blocks; here one block of queries with all keys, which keeps only the result
    between the passes. The gradient can be differentiated again.

    Cost: the forward pass twice. The backward pass holds the scores of one block of queries, a few times
    [B, H, block_size, K]; the gradient of a `bias` matrix is written as a whole for every pair of blocks, so give a
    long sequence a `BlockBias` or `flash_attention`.
    """
    masks = (key_mask, query_segments, key_segments, is_causal, first_query)
    weight, scoring = _prepared(q_BHQD, k_BJKD, v_BJKE, bias, *masks, scale, block_size)

    def attend(queries: slice) -> Tensor:
        return _attend(q_BHQD, k_BJKD, v_BJKE, weight, scoring, queries)[0].to(q_BHQD.dtype)

    blocks = scoring.blocks(q_BHQD.shape[2])
    return torch.cat([checkpoint(attend, block, use_reentrant=False, preserve_rng_state=False) for block in blocks], 2)


class FlashAttention(nn.Module):
    """`flash_attention` as a layer without parameters, its settings kept.

    Args:
        scale: of the scores; head_dim^-1/2 if None.
        is_causal: as for `flash_attention`.
        block_size: as for `flash_attention`.
    """

    def __init__(self, scale: float | None = None, *, is_causal: bool = False, block_size: int = 128) -> None:
        super().__init__()
        self.scale, self.is_causal, self.block_size = scale, is_causal, block_size

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **masks: Any) -> Tensor:
        """[B, H, Q, D], [B, J, K, D], [B, J, K, E] to [B, H, Q, E]; `bias` and masks as for `flash_attention`."""
        return self._attend(flash_attention, query, key, value, masks)

    def _attend(self, function: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, masks: Any) -> Tensor:
        scale = query.shape[-1] ** -0.5 if self.scale is None else self.scale
        settings = {"scale": scale, "is_causal": self.is_causal, "block_size": self.block_size}
        return function(query, key, value, **settings, **masks)

    def extra_repr(self) -> str:
        return f"scale={self.scale}, is_causal={self.is_causal}, block_size={self.block_size}"


class MemoryEfficientAttention(FlashAttention):
    """`memory_efficient_attention` as a layer without parameters; arguments as `FlashAttention`'s."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **masks: Any) -> Tensor:
        """As `FlashAttention.forward`."""
        return self._attend(memory_efficient_attention, query, key, value, masks)


@dataclass(frozen=True)
class _Scoring:
    """How a block of scores comes about: all that gets no gradient."""

    num_shared: int  # R, the query heads of one key head
    bias_block: Callable[[Tensor, Tensor, Tensor], Tensor] | None
    key_mask: Tensor | None
    query_segments: Tensor | None
    key_segments: Tensor | None
    is_causal: bool
    first_query: int
    scale: float
    block_size: int

    def blocks(self, length: int) -> list[slice]:
        starts = range(0, max(length, 1), self.block_size)  # a length of zero is one empty block
        return [slice(start, min(start + self.block_size, length)) for start in starts]

    def is_hidden(self, queries: slice, keys: slice) -> bool:
        """Whether every key of the block comes after every query of the block."""
        return self.is_causal and keys.start > 0 and keys.start >= self.first_query + queries.stop

    def stacked(self, block: Tensor) -> Tensor:
        """[B, H, q, ...] to [B, J, R*q, ...], in float32 or wider."""
        return block.to(_wide(block)).unflatten(1, (-1, self.num_shared)).flatten(2, 3)

    def unstacked(self, block: Tensor) -> Tensor:
        """[B, J, R*q, ...] to [B, H, q, ...]."""
        return block.unflatten(2, (self.num_shared, -1)).flatten(1, 2)

    def scores(self, q_block: Tensor, k_block: Tensor, bias: Tensor | None, queries: slice, keys: slice) -> Tensor:
        """Scores [B, J, R*q, k] of q_block [B, J, R*q, D], which has the scale, and k_block [B, J, k, D]."""
        scores = self.unstacked(q_block @ k_block.mT)
        if bias is not None:
            scores = scores + self.bias_for(bias, queries, keys).to(scores.dtype)
        visible = self._visible(queries, keys, scores.device)
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        return self.stacked(scores)

    def bias_for(self, bias: Tensor, queries: slice, keys: slice) -> Tensor:
        """One block of a bias matrix, or of the bias that a `BlockBias` makes of its weight."""
        if self.bias_block is None:
            return bias[:, :, queries, keys]
        return self.bias_block(bias, *self._positions(queries, keys, bias.device))

    def bias_gradient(self, bias: Tensor, grad_scores: Tensor, queries: slice, keys: slice) -> Tensor:
        """What grad_scores [B, J, R*q, k] add to the gradient of this block of a matrix, or of the whole weight."""
        grad_scores = self.unstacked(grad_scores)
        if self.bias_block is None:
            return grad_scores.sum_to_size(self.bias_for(bias, queries, keys).shape)
        block, pull_back, *_ = torch.func.vjp(lambda weight: self.bias_for(weight, queries, keys), bias)
        return pull_back(grad_scores.sum_to_size(block.shape).to(block.dtype))[0]

    def _visible(self, queries: slice, keys: slice, device: torch.device) -> Tensor | None:
        """Which keys of the block each query may see, bool, broadcasts to [B, H, q, k]; None for all."""
        masks = []
        if self.key_mask is not None:
            masks.append(self.key_mask[:, None, None, keys])
        if self.query_segments is not None and self.key_segments is not None:
            masks.append(self.query_segments[:, None, queries, None] == self.key_segments[:, None, None, keys])
        if self.is_causal and keys.stop > self.first_query + queries.start + 1:
            query, key = self._positions(queries, keys, device)
            masks.append(key <= query[:, None])
        return functools.reduce(torch.logical_and, masks) if masks else None

    def _positions(self, queries: slice, keys: slice, device: torch.device) -> tuple[Tensor, Tensor]:
        query = torch.arange(self.first_query + queries.start, self.first_query + queries.stop, device=device)
        return query, torch.arange(keys.start, keys.stop, device=device)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scoring: _Scoring, queries: slice
) -> tuple[Tensor, Tensor, Tensor]:
    """One block of queries against all keys: the inner loop of algorithm 1.

    Returns:
        The result [B, H, q, E]; each query's largest score and the sum of exp(score - largest), [B, H, q, 1].
    """
    with _without_autocast(q.device):
        q_block = scoring.stacked(q[:, :, queries]) * scoring.scale
        # The smallest number, not -inf: a query that has seen no key yet must not compute -inf - -inf.
        top = q_block.new_full((*q_block.shape[:3], 1), torch.finfo(q_block.dtype).min)
        total = torch.zeros_like(top)
        weighted = q_block.new_zeros(*q_block.shape[:3], v.shape[3])
        for keys in scoring.blocks(k.shape[2]):
            if scoring.is_hidden(queries, keys):
                continue
            k_block, v_block = (x[:, :, keys].to(q_block.dtype) for x in (k, v))
            scores = scoring.scores(q_block, k_block, bias, queries, keys)
            old_top = top
            if scores.shape[-1]:  # there is no largest of no keys
                top = torch.maximum(top, scores.detach().amax(-1, keepdim=True))
            # What was added up as exp(score - old_top) becomes exp(score - top).
            shrink = (old_top - top).exp_()
            weights = (scores - top).exp_()
            total = total * shrink + weights.sum(-1, keepdim=True)
            weighted = weighted * shrink + weights @ v_block
        # The largest score counts 1 in the sum, so only a query that sees no key has less.
        total = total.clamp(min=1)
        return scoring.unstacked(weighted / total), scoring.unstacked(top), scoring.unstacked(total)


class _FlashAttention(torch.autograd.Function):
    """Keeps q, k, v, bias, the result O, and each query's largest score and sum; the weights P are computed again.

    With dO the gradient that arrives and dS that of the scores: dV = P^T dO, dS = P * (dO V^T - sum(dO * O)),
    dQ = scale dS K, dK = scale dS^T Q. The sum, over E, equals that of P * (dO V^T) over all keys, which no block has.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scoring: _Scoring) -> Tensor:
        out = q.new_empty(*q.shape[:3], v.shape[3])
        top, total = (q.new_empty(*q.shape[:3], 1, dtype=_wide(q)) for _ in range(2))
        for queries in scoring.blocks(q.shape[2]):
            block = _attend(q, k, v, bias, scoring, queries)
            out[:, :, queries], top[:, :, queries], total[:, :, queries] = block
        ctx.save_for_backward(q, k, v, bias, out, top, total)
        ctx.scoring = scoring
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if torch.is_grad_enabled():  # only with create_graph=True
            raise ModelError(
                "The gradient of flash_attention cannot be differentiated again (create_graph=True); "
                "use memory_efficient_attention."
            )
        q, k, v, bias, out, top, total = ctx.saved_tensors
        scoring: _Scoring = ctx.scoring
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=top.dtype) for x in (q, k, v))
        grad_bias = torch.zeros_like(bias, dtype=top.dtype) if ctx.needs_input_grad[3] else None
        with _without_autocast(q.device):
            grad_dot_out = (grad_out.to(top.dtype) * out).sum(-1, keepdim=True)
            for keys in scoring.blocks(k.shape[2]):
                k_block, v_block = (x[:, :, keys].to(top.dtype) for x in (k, v))
                for queries in scoring.blocks(q.shape[2]):
                    if scoring.is_hidden(queries, keys):
                        continue
                    q_block = scoring.stacked(q[:, :, queries]) * scoring.scale
                    grad_block, top_block, total_block, dot_block = (
                        scoring.stacked(x[:, :, queries]) for x in (grad_out, top, total, grad_dot_out)
                    )
                    scores = scoring.scores(q_block, k_block, bias, queries, keys)
                    weights = (scores - top_block).exp_().div_(total_block)
                    grad_v[:, :, keys] += weights.mT @ grad_block
                    grad_scores = (grad_block @ v_block.mT).sub_(dot_block).mul_(weights)
                    grad_k[:, :, keys] += grad_scores.mT @ q_block
                    grad_q[:, :, queries] += scoring.unstacked(grad_scores @ k_block).mul_(scoring.scale)
                    if grad_bias is not None:
                        part = grad_bias if scoring.bias_block else grad_bias[:, :, queries, keys]
                        part += scoring.bias_gradient(bias, grad_scores, queries, keys)
        grads = (grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype))
        return *grads, None if grad_bias is None else grad_bias.to(bias.dtype), None


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast would round the blocks to its own type before every product."""
    is_known = torch.amp.is_autocast_available(device.type)  # the meta device is not
    return torch.autocast(device.type, enabled=False) if is_known else nullcontext()


def check_arguments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | BlockBias | None,
    key_mask: Tensor | None,
    query_segments: Tensor | None,
    key_segments: Tensor | None,
    first_query: int,
    block_size: int,
) -> None:
    """Refuse arguments of a blockwise attention that do not fit together.

    Raises:
        ModelError: they do not.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4 or not x.is_floating_point():
            raise ModelError(
                f"{name} is {x.dtype} {list(x.shape)}; it must be floating-point [batch, heads, len, dim]."
            )
    (batch, heads, query_len, dim), (_, key_heads, key_len, _) = q.shape, k.shape
    if not key_heads or heads % key_heads:
        raise ModelError(f"q has {heads} heads and k has {key_heads}; the first must be a multiple of the second.")
    given = {
        "k": (k, (batch, key_heads, key_len, dim)),
        "v": (v, (batch, key_heads, key_len, v.shape[3])),
        "key_mask": (key_mask, (batch, key_len)),
        "query_segments": (query_segments, (batch, query_len)),
        "key_segments": (key_segments, (batch, key_len)),
    }
    for name, (x, shape) in given.items():
        if x is not None and x.shape != shape:
            raise ModelError(
                f"{name} is {list(x.shape)}; with q {list(q.shape)} and k {list(k.shape)} it must be {list(shape)}."
            )
    if isinstance(bias, Tensor):
        fits = bias.dim() == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
        if not fits or bias.shape[2:] != (query_len, key_len) or not bias.is_floating_point():
            raise ModelError(
                f"bias is {bias.dtype} {list(bias.shape)}; it must be floating-point, "
                f"[1 or {batch}, 1 or {heads}, {query_len}, {key_len}]."
            )
    if isinstance(bias, DistanceBias) and (bias.weight.dim() != 2 or bias.weight.shape[0] != heads):
        raise ModelError(f"The bias's weight is {list(bias.weight.shape)}; it must be [{heads}, 2 * reach + 1].")
    if key_mask is not None and key_mask.dtype != torch.bool:
        raise ModelError(f"key_mask is {key_mask.dtype}; it must be bool, True for keys that may be seen.")
    if (query_segments is None) != (key_segments is None):
        raise ModelError("Only one of query_segments and key_segments is given; give both or none.")
    if first_query < 0 or block_size < 1:
        raise ModelError(f"first_query is {first_query}, block_size {block_size}; they must be at least 0 and 1.")


def _prepared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | BlockBias | None,
    key_mask: Tensor | None,
    query_segments: Tensor | None,
    key_segments: Tensor | None,
    is_causal: bool,
    first_query: int,
    scale: float,
    block_size: int,
) -> tuple[Tensor | None, _Scoring]:
    """The bias's tensor and the rest, after checking that all fits together."""
    check_arguments(q, k, v, bias, key_mask, query_segments, key_segments, first_query, block_size)
    weight, bias_block = (bias.weight, bias.block) if isinstance(bias, BlockBias) else (bias, None)
    masks = (key_mask, query_segments, key_segments, is_causal, first_query)
    return weight, _Scoring(q.shape[1] // k.shape[1], bias_block, *masks, scale, block_size)
