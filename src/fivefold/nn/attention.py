"""Attention: one function, the kernel chosen by what is asked or by name.

Shapes: B batch, H heads, J heads of the keys and values (H is a multiple of J), Q queries, K keys, D head_dim.
"""

import functools
import logging
import os
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fivefold.errors import ModelError
from fivefold.nn.flash_attention import BlockBias, DistanceBias, flash_attention, memory_efficient_attention
from fivefold.nn.hollow import is_hollow
from fivefold.nn.tiled_attention import tiled_attention

log = logging.getLogger("fivefold")

Kernel = Literal["auto", "sdpa", "tiled", "flash", "memory_efficient", "triton"]

_HAS_TRITON = find_spec("triton") is not None
_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TRITON_HEAD_DIM = 128


def attention(
    q_BHQD: Tensor,
    k_BJKD: Tensor,
    v_BJKD: Tensor,
    *,
    bias: Tensor | BlockBias | None = None,
    key_mask: Tensor | None = None,
    query_segments: Tensor | None = None,
    key_segments: Tensor | None = None,
    is_causal: bool = False,
    first_query: int = 0,
    scale: float = 1.0,
    dropout_rate: float = 0.0,
    kernel: Kernel = "auto",
) -> Tensor:
    """softmax(scale * q k^T + bias) v, over the keys that a query may see.

    Kernels, by name:
        sdpa: torch's fused ones.
        tiled: `tiled_attention`, for training on a CPU, in tiles of a core's cache; torch's kernel there would write
            every [B, H, Q, K] weight where a bias needs a gradient or weights are dropped.
        flash: `flash_attention`, which holds one block of scores, on any device and with a `BlockBias`.
        memory_efficient: `memory_efficient_attention`, the same in checkpointed blocks.
        triton: `triton_attention` on an NVIDIA GPU, for a `DistanceBias` or none.
        auto: triton for a `DistanceBias` where it can, flash for another `BlockBias`. Where a CPU trains: tiled for a
            bias [1, H, Q, K] that needs a gradient, for dropout, and in bfloat16 (causal without a bias: sdpa, which
            skips the hidden half); flash for another bias that needs a gradient. Else sdpa. What training got is logged
            once. Dropout is sdpa's and tiled's alone.

    Args:
        bias: [1 or B, 1 or H, Q, K], added to the scores, -inf forbids a pair; or a `BlockBias`.
        key_mask: [B, K] bool, False for keys that no query of that row may see (padding).
        query_segments: [B, Q] integers, with `key_segments`: a query sees only keys of its own segment (packing).
        key_segments: [B, K] integers.
        is_causal: query i sees keys 0 to first_query + i only.
        first_query: position of the first query among the keys, for a decoder that continues a cache.
        dropout_rate: applied to the attention weights; callers pass 0 outside training.

    Returns:
        [B, H, Q, D]. A query that may see no key gets zeros.

    Raises:
        ModelError: the kernel named cannot do what is asked, or only one side has segments.
    """
    if (query_segments is None) != (key_segments is None):
        raise ModelError("Only one of query_segments and key_segments is given; give both or none.")
    if kernel == "auto":
        kernel = _choose(q_BHQD, k_BJKD, v_BJKD, bias, is_causal, dropout_rate)
        if isinstance(bias, DistanceBias) and q_BHQD.is_cuda and not dropout_rate:
            kernel = kernel if _lack_of_triton(q_BHQD, q_BHQD.shape[-1], v_BJKD.shape[-1]) else "triton"
        _say_choice(kernel, q_BHQD, bias)
    elif kernel == "triton":
        _check_triton(q_BHQD, v_BJKD, bias, dropout_rate)
    else:
        _check(kernel, q_BHQD, bias, dropout_rate)
    masks: dict[str, Any] = {
        "key_mask": key_mask,
        "query_segments": query_segments,
        "key_segments": key_segments,
        "is_causal": is_causal,
        "first_query": first_query,
    }
    if kernel in ("flash", "memory_efficient"):
        blockwise = flash_attention if kernel == "flash" else memory_efficient_attention
        return blockwise(q_BHQD, k_BJKD, v_BJKD, bias=bias, scale=scale, **masks)
    if kernel == "triton":
        from fivefold.nn.triton_attention import triton_attention  # imports triton, which not everyone has

        assert bias is None or isinstance(bias, DistanceBias)
        return triton_attention(q_BHQD, k_BJKD, v_BJKD, bias=bias, scale=scale, **masks)
    assert not isinstance(bias, BlockBias)
    if kernel == "tiled":
        visible = _visible(q_BHQD, k_BJKD, **masks)
        shared = q_BHQD.shape[1] // k_BJKD.shape[1]
        k, v = (x if shared == 1 else x.repeat_interleave(shared, 1) for x in (k_BJKD, v_BJKD))
        return tiled_attention(q_BHQD, k, v, bias, visible, scale, dropout_rate)
    # Without anything else to hide, torch skips the hidden half; its own mask counts the first query as the first key.
    hides_future = is_causal and first_query + 1 < k_BJKD.shape[2]
    is_plain = hides_future and not first_query and bias is None and key_mask is None and query_segments is None
    mask = None if is_plain else _visible(q_BHQD, k_BJKD, **masks)
    if bias is not None:
        mask = (bias if mask is None else bias.masked_fill(~mask, float("-inf"))).to(q_BHQD.dtype)
    return F.scaled_dot_product_attention(
        *(q_BHQD, k_BJKD, v_BJKD),
        attn_mask=mask,
        dropout_p=dropout_rate,
        is_causal=is_plain,
        scale=scale,
        enable_gqa=q_BHQD.shape[1] != k_BJKD.shape[1],
    )


def check_kernel(name: str) -> None:
    """Refuse a kernel that does not exist.

    Raises:
        ModelError: it does not.
    """
    if name not in get_args(Kernel):
        raise ModelError(f"There is no attention kernel {name!r}; there are {', '.join(get_args(Kernel))}.")


def takes_distances(kernel: Kernel, like: Tensor, *, head_dim: int, query_len: int, dropout_rate: float) -> bool:
    """Whether T5's bias is better handed to `attention` as a `DistanceBias` than as a matrix.

    Args:
        kernel: the one that `attention` will be called with.
        like: a tensor on the device and of the type of the queries, as far as known.
        query_len: a single query, as in generation, needs one row of a matrix and no kernel.
    """
    if kernel != "auto":
        return kernel == "triton"
    if not like.is_cuda or query_len == 1:
        return False
    lack = "it has no dropout" if dropout_rate else _lack_of_triton(like, head_dim, head_dim)
    if lack:
        _say(f"T5's position bias goes as a matrix, not to the faster attention kernel 'triton': {lack}")
    return lack is None


def _choose(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | BlockBias | None, is_causal: bool, dropout_rate: float
) -> Kernel:
    if isinstance(bias, BlockBias):
        return "flash"
    if q.device.type != "cpu" or not torch.is_grad_enabled():
        return "sdpa"
    if dropout_rate and torch.compiler.is_compiling():  # which takes no random generator of the tiles' own
        return "sdpa"
    needs_grad = bias is not None and bias.requires_grad
    if not (needs_grad or q.requires_grad or k.requires_grad or v.requires_grad):
        return "sdpa"
    if bias is not None and bias.shape[:2] != (1, q.shape[1]):
        return "flash" if needs_grad and not dropout_rate else "sdpa"
    # Without a bias torch's kernel is the faster one in float32, and it skips what a causal mask hides.
    is_slow_there = q.dtype == torch.bfloat16 and (bias is not None or not is_causal)
    return "tiled" if needs_grad or dropout_rate or is_slow_there else "sdpa"


def _check(kernel: Kernel, q: Tensor, bias: Tensor | BlockBias | None, dropout_rate: float) -> None:
    check_kernel(kernel)
    lacks = f"The attention kernel {kernel!r}"
    if dropout_rate and kernel not in ("sdpa", "tiled"):
        raise ModelError(f"{lacks} has no dropout; use 'auto', 'sdpa' or 'tiled', or a dropout_rate of 0.")
    if isinstance(bias, BlockBias):
        if kernel in ("sdpa", "tiled"):
            raise ModelError(f"{lacks} takes a bias as a matrix, not a BlockBias; use 'flash' or 'memory_efficient'.")
    elif kernel == "tiled" and bias is not None and bias.shape[:2] != (1, q.shape[1]):
        raise ModelError(
            f"{lacks} takes a bias [1, {q.shape[1]}, queries, keys] and got {list(bias.shape)}; use 'auto' or 'sdpa'."
        )


def _check_triton(q: Tensor, v: Tensor, bias: Tensor | BlockBias | None, dropout_rate: float) -> None:
    lacks = "The attention kernel 'triton'"
    if dropout_rate:
        raise ModelError(f"{lacks} has no dropout; use 'auto', 'sdpa' or 'tiled', or a dropout_rate of 0.")
    if not isinstance(bias, DistanceBias | None):
        given = "another BlockBias" if isinstance(bias, BlockBias) else f"a matrix {list(bias.shape)}"
        raise ModelError(f"{lacks} takes a DistanceBias, such as T5's, or none, but got {given}; use 'auto'.")
    if lack := _lack_of_triton(q, q.shape[-1], v.shape[-1]):
        raise ModelError(f"{lacks} cannot be used: {lack}; use 'auto', 'sdpa' or 'flash'.")


def _lack_of_triton(q: Tensor, head_dim: int, value_dim: int) -> str | None:
    """Why the kernel "triton" cannot be used for queries of q's device and type; None if it can."""
    if not _HAS_TRITON:
        return "triton is not installed (pip install 'fivefold[triton]')"
    if not q.is_cuda:
        if q.device.type != "cpu" or os.environ.get("TRITON_INTERPRET") != "1":
            return f"the tensors are on the device {q.device.type!r}, not on an NVIDIA GPU"
        if q.dtype == torch.bfloat16:
            return "Triton's interpreter (TRITON_INTERPRET=1) cannot multiply bfloat16"
    elif torch.version.hip or not _is_ampere(q.device):
        return "it is made for NVIDIA GPUs from the year 2020 on (Ampere, compute capability 8.0)"
    if q.dtype not in _TRITON_DTYPES:
        return f"it computes float32, bfloat16 and float16, not {q.dtype}"
    if head_dim > _TRITON_HEAD_DIM or head_dim != value_dim:
        return f"it is made for a head_dim up to {_TRITON_HEAD_DIM}, the values' too, not {head_dim} and {value_dim}"
    return None


def _is_ampere(device: torch.device) -> bool:
    # torch.compile cannot ask, and its own kernels have no use for older ones either.
    return torch.compiler.is_compiling() or torch.cuda.get_device_capability(device) >= (8, 0)


def _say_choice(kernel: Kernel, q: Tensor, bias: Tensor | BlockBias | None) -> None:
    if not torch.is_grad_enabled() or is_hollow(q):  # only what training got
        return
    if isinstance(bias, Tensor):
        kind = "a trained bias" if bias.requires_grad else "a fixed bias"
    else:
        kind = "no bias" if bias is None else f"a {type(bias).__name__}"
    _say(f"attention with {kind} on {q.device.type}: {kernel}")


def _say(text: str) -> None:
    if not torch.compiler.is_compiling():  # a log line would break the graph
        _say_once(text)


@functools.cache
def _say_once(text: str) -> None:
    log.info("%s", text)


def _visible(
    q: Tensor,
    k: Tensor,
    *,
    key_mask: Tensor | None,
    query_segments: Tensor | None,
    key_segments: Tensor | None,
    is_causal: bool,
    first_query: int,
) -> Tensor | None:
    """Which keys each query may see, bool [1 or B, 1, 1 or Q, K]; None for all of them."""
    masks = []
    if key_mask is not None:
        masks.append(key_mask[:, None, None, :])
    if query_segments is not None and key_segments is not None:
        masks.append((query_segments[:, :, None] == key_segments[:, None, :]).unsqueeze(1))
    query_len, key_len = q.shape[2], k.shape[2]
    if is_causal and first_query + 1 < key_len:
        pairs = torch.ones(query_len, key_len, dtype=torch.bool, device=q.device)
        masks.append(pairs.tril(first_query)[None, None])
    return functools.reduce(torch.logical_and, masks) if masks else None
