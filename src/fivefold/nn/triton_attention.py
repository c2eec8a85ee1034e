"""Attention with a bias by distance for CUDA, in Triton: T5's relative bias and its gradient, and no matrix of either.

Importing this needs triton, so `attention` does it when the kernel is used. TRITON_INTERPRET=1, set before that, runs
the kernels on a CPU, slowly.

Shapes: B batch, H heads, J heads of the keys and values (H is a multiple of J), Q queries, K keys, D head_dim, R reach
of the bias. Inside a kernel a tile is M queries by N keys, and head_dim is padded to W, a power of two.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fivefold.errors import ModelError
from fivefold.nn import triton_kernels
from fivefold.nn.flash_attention import DistanceBias, check_arguments

_KERNELS: Any = triton_kernels  # a launch takes options that their signatures do not name


def triton_attention(
    q_BHQD: Tensor,
    k_BJKD: Tensor,
    v_BJKD: Tensor,
    *,
    bias: DistanceBias | None = None,
    key_mask: Tensor | None = None,
    query_segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    is_causal: bool = False,
    first_query: int = 0,
    scale: float = 1.0,
    block_size: int | None = None,
) -> Tensor:
    """softmax(scale * q k^T + bias) v over the keys that a query may see, with exact gradients.

    Source: Dao 2023, FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2.
    Differs: the bias is read by distance, one number for a whole tile beyond its reach. Its gradient is the sum of each
    diagonal of the score gradients: a tile is skewed, so that diagonals become columns, which are added up within a
    program and then over programs, always in the same order: two runs give the same bits.

    Args:
        q_BHQD: float32, bfloat16 or float16, at most 128 channels; [B, Q, H, D] in memory, as projections leave it, is
            read without a copy.
        bias: a `DistanceBias`; None for none.
        key_mask: [B, K] bool, False for keys that no query of that row may see (padding).
        query_segments: [B, Q] integers, with `key_segments`: a query sees only keys of its own segment (packing).
        key_segments: [B, K] integers.
        is_causal: query i sees keys 0 to first_query + i only.
        first_query: position of the first query among the keys.
        block_size: M and N, a power of two from 16 on; by default what suits head_dim and type.

    Returns:
        [B, H, Q, D] in q's dtype. A query that may see no key gets zeros and gives none a gradient.

    Raises:
        ModelError: arguments that do not fit together, or a gradient that is to be differentiated again.

    Cost: seven matrix products a tile in the backward pass, two in the forward. Kept in between: q, k, v, the result
    and one float32 a query and head. The bias's gradient takes 4 * B * H * Q / M * (2R + 4N) bytes for a moment.
    """
    masks = (key_mask, query_segments, key_segments)
    check_arguments(q_BHQD, k_BJKD, v_BJKD, bias, *masks, first_query, block_size or 1)
    weight = q_BHQD.new_zeros(q_BHQD.shape[1], 1) if bias is None else bias.weight
    q, k, v = (x.to(q_BHQD.dtype).transpose(1, 2) for x in (q_BHQD, k_BJKD, v_BJKD))
    out, _ = distance_attention(q, k, v, weight, *masks, is_causal, first_query, scale, block_size)
    return out.transpose(1, 2)


@torch.library.custom_op("fivefold::distance_attention", mutates_args=())
def distance_attention(
    q_BQHD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    weight_HR: Tensor,
    key_mask: Tensor | None,
    query_segments: Tensor | None,
    key_segments: Tensor | None,
    is_causal: bool,
    first_query: int,
    scale: float,
    block_size: int | None,
) -> tuple[Tensor, Tensor]:
    """What `triton_attention` computes as one operation for torch.compile: result and log-sum-exp, [B, H, Q]."""
    problem = _problem(q_BQHD, k_BKJD, weight_HR, key_mask, query_segments, key_segments, first_query, scale)
    (batch, query_len, heads, _), inputs = q_BQHD.shape, [x.contiguous() for x in (q_BQHD, k_BKJD, v_BKJD)]
    out, log_sum = torch.empty_like(inputs[0]), q_BQHD.new_empty(batch, heads, query_len, dtype=torch.float32)
    if not out.numel() or not k_BKJD.shape[1]:
        return out.zero_(), log_sum.zero_()
    settings = _settings("forward", q_BQHD, is_causal, block_size)
    with _device_of(q_BQHD):
        num_programs = _num_blocks(query_len, settings["M"]) * batch * heads
        _KERNELS.forward[(num_programs,)](*inputs, *problem, out, log_sum, **settings)
    return out, log_sum


@distance_attention.register_fake
def _(q_BQHD: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    batch, query_len, heads, dim = q_BQHD.shape
    log_sum = q_BQHD.new_empty(batch, heads, query_len, dtype=torch.float32)
    return q_BQHD.new_empty(batch, query_len, heads, dim), log_sum


@torch.library.custom_op("fivefold::distance_attention_backward", mutates_args=())
def distance_attention_backward(
    grad_BQHD: Tensor,
    q_BQHD: Tensor,
    k_BKJD: Tensor,
    v_BKJD: Tensor,
    weight_HR: Tensor,
    key_mask: Tensor | None,
    query_segments: Tensor | None,
    key_segments: Tensor | None,
    out_BQHD: Tensor,
    log_sum_BHQ: Tensor,
    is_causal: bool,
    first_query: int,
    scale: float,
    block_size: int | None,
    has_bias_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the bias's weight (zeros unless `has_bias_gradient`)."""
    problem = _problem(q_BQHD, k_BKJD, weight_HR, key_mask, query_segments, key_segments, first_query, scale)
    inputs = [x.contiguous() for x in (q_BQHD, k_BKJD, v_BKJD, out_BQHD, grad_BQHD)]
    grad_q, grad_k, grad_v = (torch.empty_like(x) for x in inputs[:3])
    grad_weight = torch.zeros_like(weight_HR)
    if not q_BQHD.numel() or not k_BKJD.shape[1]:
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_(), grad_weight
    (batch, query_len, heads, _), (_, key_len, key_heads, _) = q_BQHD.shape, k_BKJD.shape
    settings = _settings("grad_queries", q_BQHD, is_causal, block_size)
    assert settings["M"] <= settings["N"]  # the kernel turns row m of a tile by m places
    num_blocks, near = _num_blocks(query_len, settings["M"]), 2 * settings["N"]
    dot, sums = torch.empty_like(log_sum_BHQ), None
    if has_bias_gradient:
        sums = log_sum_BHQ.new_zeros(batch, heads, num_blocks, 2 * problem.reach + 2 * near)
    with _device_of(q_BQHD):
        grid = (num_blocks * batch * heads,)
        _KERNELS.grad_queries[grid](*inputs, *problem, log_sum_BHQ, dot, grad_q, sums, **settings)
        settings = _settings("grad_keys", q_BQHD, is_causal, block_size)
        grid = (_num_blocks(key_len, settings["N"]) * batch * key_heads,)
        q, k, v, _, grad = inputs
        _KERNELS.grad_keys[grid](q, k, v, grad, *problem, log_sum_BHQ, dot, grad_k, grad_v, **settings)
    if sums is not None:
        before, within, after = sums.sum((0, 2)).split([near, 2 * problem.reach + 1, near - 1], 1)
        within[:, 0] += before.sum(1)
        within[:, -1] += after.sum(1)
        grad_weight.copy_(within)
    return grad_q, grad_k, grad_v, grad_weight


@distance_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(x.shape) for x in (q, k, v, weight))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], *output)
    ctx.settings = inputs[7:]
    ctx.mark_non_differentiable(output[1])


def _pull_back(ctx: Any, grad_out: Tensor, _: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # only with create_graph=True
        raise ModelError(
            "The gradient of the attention kernel 'triton' cannot be differentiated again (create_graph=True); use "
            "'memory_efficient'."
        )
    has_bias_gradient = ctx.needs_input_grad[3]
    grads = distance_attention_backward(grad_out, *ctx.saved_tensors, *ctx.settings, has_bias_gradient)
    return *grads[:3], grads[3] if has_bias_gradient else None, *[None] * 7


distance_attention.register_autograd(_pull_back, setup_context=_keep)


class _Problem(NamedTuple):
    """What every kernel takes after its tensors, in this order."""

    weight: Tensor
    key_mask: Tensor | None
    query_segments: Tensor | None
    key_segments: Tensor | None
    heads: int
    key_heads: int
    query_len: int
    key_len: int
    first_query: int
    reach: int
    scale: float


def _problem(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    key_mask: Tensor | None,
    query_segments: Tensor | None,
    key_segments: Tensor | None,
    first_query: int,
    scale: float,
) -> _Problem:
    mask, ours, theirs = (x if x is None else x.contiguous() for x in (key_mask, query_segments, key_segments))
    (_, query_len, heads, _), (_, key_len, key_heads, _), reach = q.shape, k.shape, weight.shape[1] // 2
    sizes = (heads, key_heads, query_len, key_len, first_query, reach)
    return _Problem(weight.contiguous(), mask, ours, theirs, *sizes, scale)


def launch_settings(kernel: str, head_dim: int, element_bytes: int) -> tuple[int, int, int, int]:
    """M, N, warps and pipeline stages that spill next to nothing and fit consumer cards, which share 99 KiB."""
    if element_bytes == 4:
        return (32, 32, 4 if head_dim <= 64 else 8, 1)
    small, large = {
        "forward": ((128, 64, 4, 2), (128, 64, 8, 2)),
        "grad_queries": ((64, 64, 4, 2), (64, 64, 8, 2)),
        "grad_keys": ((32, 128, 8, 2), (32, 64, 8, 2)),
    }[kernel]
    return small if head_dim <= 64 else large


def _settings(kernel: str, q: Tensor, is_causal: bool, block_size: int | None) -> dict[str, Any]:
    dim = q.shape[3]
    m, n, num_warps, num_stages = launch_settings(kernel, dim, q.element_size())
    if block_size is not None:
        m = n = block_size
    tile = {"IS_CAUSAL": is_causal, "D": dim, "W": max(16, 1 << (dim - 1).bit_length()), "M": m, "N": n}
    return tile | {"num_warps": num_warps, "num_stages": num_stages}


def _num_blocks(length: int, size: int) -> int:
    return -(-length // size)


def _device_of(x: Tensor) -> AbstractContextManager[Any]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
