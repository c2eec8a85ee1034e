"""Attention over [main | branch | branch | ...] for transformers' decoders: main is read once for all its branches.

A branch's queries meet two sets of keys, main's and their own branch's. Each is one call of a fused kernel without a
mask; the two results are joined by their log-sum-exp. Source: Hydragen, https://arxiv.org/abs/2402.05099, for decoding;
here with gradients: a fused kernel's backward pass needs only the joint result and the joint log-sum-exp.

Shapes: B rows, N tokens, H heads, J heads of keys and values, D channels; R branches, L tokens of the longest one, Q of
all of them.
"""

import sys
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from fivefold.branches.plan import BranchPlan, DecodingPlan, RowPlan

BRANCH_ATTENTION = "fivefold_branches"
"""Its name in transformers' attention interface."""
_HAS_TRITON = find_spec("triton") is not None
_FLEX_LEAST_CHANNELS = 16


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    branches: BranchPlan | DecodingPlan | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer.

    Args:
        module: the layer's attention.
        query: [B, H, N, D].
        key: [B, J, N, D]; value alike.
        attention_mask: of a call without branches.
        sliding_window: how far back the layer sees, in time.
        branches: the batch's plan; without it the call is an ordinary one.

    Returns:
        [B, N, H, D].

    Raises:
        ConfigError: a plan of another batch.
    """
    if isinstance(branches, BranchPlan):
        branches.check_fits(len(query), query.shape[2])
    has_own_scores = kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None
    if isinstance(branches, DecodingPlan) and branches.shared is not None:
        main_key, main_value = branches.shared.main[module.layer_idx]  # type: ignore[index]
        if not has_own_scores:
            mask = branches.mask(sliding_window)
            return _decoded(query, key, value, main_key, main_value, mask, scaling), None
        rows = (len(query), -1, -1, -1)
        key, value = torch.cat([main_key.expand(rows), key], 2), torch.cat([main_value.expand(rows), value], 2)
    if has_own_scores:
        # Gemma 2's limit of the scores and gpt-oss's sinks: only the model's own code has them.
        mask = attention_mask if branches is None else branches.mask(sliding_window)
        own: Any = sys.modules[type(module).__module__]
        given = kwargs | {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
        return own.eager_attention_forward(module, query, key, value, _as_scores(mask, query, key), **given)[0], None
    if isinstance(branches, DecodingPlan):
        attention_mask = branches.mask(sliding_window)
    elif branches is not None:
        if sliding_window is not None and branches.latest <= sliding_window:
            sliding_window = None
        out = None if dropout else _without_mask(query, key, value, branches, sliding_window, scaling)
        if out is not None:
            return out.transpose(1, 2), None
        attention_mask = branches.mask(sliding_window)
    given = kwargs | {"scaling": scaling, "dropout": dropout}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **given)


def _without_mask(q: Tensor, k: Tensor, v: Tensor, plan: BranchPlan, window: int | None, scale: float | None) -> Any:
    """[B, H, N, D] by a kernel that is told who sees whom; None where there is none."""
    device = q.device.type
    if torch.is_autocast_enabled(device):  # which knows torch's attention, but not these
        q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
    if device == "cpu" and plan.visibility == "isolated" and window is None and q.shape[-1] == v.shape[-1]:
        return _SharedPrefix.apply(q, k, v, plan.rows, scale)
    if device == "cuda" and _HAS_TRITON and min(q.shape[-1], v.shape[-1]) >= _FLEX_LEAST_CHANNELS:
        return _compiled_flex()(q, k, v, block_mask=plan.blocks(window), scale=scale, enable_gqa=True)
    return None


@cache
def _compiled_flex() -> Any:
    """FlexAttention for batches of any size; not compiled, it would make the whole mask."""
    return torch.compile(flex_attention, dynamic=True)


class _SharedPrefix(torch.autograd.Function):
    """Row by row, so that no two main texts have to be of one length."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, rows: list[RowPlan], scale: float | None) -> Tensor:
        out = torch.zeros_like(q)
        log_sums = q.new_zeros(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for number, row in enumerate(rows):
            one = slice(number, number + 1)
            for part in _parts(row, k.shape[1]):
                found, sums = _flash(*part.inputs(q[one], k[one], v[one]), 0.0, part.is_causal, scale=scale)
                found, sums = part.in_row(found), part.in_row(sums)
                before = log_sums[one, :, part.place]
                joint = torch.logaddexp(before, sums) if part.joins else sums
                if part.joins:
                    known = out[one, :, part.place] * (before - joint).exp().unsqueeze(-1)
                    found = known + found * (sums - joint).exp().unsqueeze(-1)
                out[one, :, part.place] = found
                log_sums[one, :, part.place] = joint
        ctx.save_for_backward(q, k, v, out, log_sums)
        ctx.rows, ctx.scale = rows, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, log_sums = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for number, row in enumerate(ctx.rows):
            one = slice(number, number + 1)
            for part in _parts(row, k.shape[1]):
                inputs = part.inputs(q[one], k[one], v[one])
                known = (part.queries(out[one]), part.queries(log_sums[one]))
                found = _flash_backward(part.queries(grad[one]), *inputs, *known, 0.0, part.is_causal, scale=ctx.scale)
                grad_q[one, :, part.place] += part.in_row(found[0])
                grad_k[one, :, part.key_place] += part.keys_in_row(found[1])
                grad_v[one, :, part.key_place] += part.keys_in_row(found[2])
        return grad_q, grad_k, grad_v, None, None


# torch's fused kernel for CPUs, which also gives the log-sum-exp of each query's scores, [B, H, Q].
_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _MainSeesMain:
    """One call of the kernel: its queries and keys out of a row, and the way back of what it gives."""

    is_causal, joins = True, False

    def __init__(self, row: RowPlan, num_shared: int) -> None:
        main, ours = slice(0, row.main_length), slice(row.main_length, row.main_length + sum(row.lengths))
        self.row, self.num_shared = row, num_shared
        self.place, self.key_place = self._places(main, ours)

    def _places(self, main: slice, ours: slice) -> tuple[slice, slice]:
        return main, main

    def inputs(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The kernel's, of [1, H or J, N, D]."""
        return self.queries(q), self.keys(k, q.shape[1]), self.keys(v, q.shape[1])

    def queries(self, x: Tensor) -> Tensor:
        """Out of [1, H, N, ...]."""
        return x[:, :, self.place]

    def in_row(self, x: Tensor) -> Tensor:
        """The way back, [1, H, of `place`, ...]."""
        return x

    def keys(self, x: Tensor, num_heads: int) -> Tensor:
        """Out of [1, J, N, D], for all heads."""
        return _for_all_heads(x[:, :, self.key_place], num_heads)

    def keys_in_row(self, x: Tensor) -> Tensor:
        """The way back, [1, J, of `key_place`, D]."""
        return _sum_shared(x, self.num_shared)


class _BranchesSeeThemselves(_MainSeesMain):
    """The branches are the kernel's batch; shorter ones are padded."""

    def _places(self, main: slice, ours: slice) -> tuple[slice, slice]:
        return ours, ours

    def queries(self, x: Tensor) -> Tensor:
        branches = x[0, :, self.place]
        lengths = self.row.lengths
        if min(lengths) == max(lengths):
            return branches.unflatten(1, (len(lengths), -1)).transpose(0, 1)
        padded = x.new_zeros(x.shape[1], len(lengths), max(lengths), *x.shape[3:])
        padded[:, self._is_real(x)] = branches
        return padded.transpose(0, 1)

    def in_row(self, x: Tensor) -> Tensor:
        is_ragged = min(self.row.lengths) != max(self.row.lengths)
        branches = x.transpose(0, 1)
        return (branches[:, self._is_real(x)] if is_ragged else branches.flatten(1, 2)).unsqueeze(0)

    def keys(self, x: Tensor, num_heads: int) -> Tensor:
        return _for_all_heads(self.queries(x), num_heads)

    def keys_in_row(self, x: Tensor) -> Tensor:
        return self.in_row(_sum_shared(x, self.num_shared))

    def _is_real(self, x: Tensor) -> Tensor:
        """[R, L], whether a branch has a token there."""
        lengths = torch.tensor(self.row.lengths, device=x.device)
        return torch.arange(max(self.row.lengths), device=x.device) < lengths[:, None]


class _BranchesSeeMain(_MainSeesMain):
    """All of them see all of it, so that the queries of heads that share keys stand behind each other as one head's."""

    is_causal, joins = False, True

    def _places(self, main: slice, ours: slice) -> tuple[slice, slice]:
        return ours, main

    def queries(self, x: Tensor) -> Tensor:
        return x[:, :, self.place].reshape(1, self.num_shared, -1, *x.shape[3:])

    def in_row(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, sum(self.row.lengths), *x.shape[3:])

    def keys(self, x: Tensor, num_heads: int) -> Tensor:
        return x[:, :, self.key_place]

    def keys_in_row(self, x: Tensor) -> Tensor:
        return x


def _parts(row: RowPlan, num_shared: int) -> list[_MainSeesMain]:
    kinds = [_MainSeesMain] if row.main_length else []
    kinds += [_BranchesSeeThemselves] if row.lengths else []
    kinds += [_BranchesSeeMain] if row.main_length and row.lengths else []
    return [kind(row, num_shared) for kind in kinds]


def _decoded(
    q: Tensor, k: Tensor, v: Tensor, main_k: Tensor, main_v: Tensor, mask: Tensor, scale: float | None
) -> Tensor:
    """[R, n, H, D]: one softmax over main's keys, which all rows share, and over each row's own.

    Source: bifurcated attention, https://arxiv.org/abs/2403.08845.

    Args:
        q: [R, H, n, D].
        k: [R, J, T, D]; v alike.
        main_k: [1, J, M, D]; main_v alike.
        mask: [R, 1, n, M + T] bool.
    """
    num_rows, _, width, head_dim = q.shape
    shared, main_length = k.shape[1], main_k.shape[2]
    q = q.unflatten(1, (shared, -1)) * (head_dim**-0.5 if scale is None else scale)
    of_main = (q.transpose(0, 1).flatten(1, 3) @ main_k[0].mT).unflatten(1, (num_rows, -1)).transpose(0, 1)
    scores = torch.cat([of_main, q.flatten(2, 3) @ k.mT], 3).unflatten(2, (-1, width))
    scores = scores.masked_fill(~mask.unsqueeze(1), float("-inf"))
    weights = scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(v.dtype).flatten(2, 3)
    to_main = weights[..., :main_length].transpose(0, 1).flatten(1, 2) @ main_v[0]
    out = to_main.unflatten(1, (num_rows, -1)).transpose(0, 1) + weights[..., main_length:] @ v
    return out.unflatten(2, (-1, width)).flatten(1, 2).transpose(1, 2)


def _for_all_heads(x: Tensor, num_heads: int) -> Tensor:
    shared = num_heads // x.shape[1]
    return x if shared == 1 else x.repeat_interleave(shared, 1)


def _sum_shared(x: Tensor, num_shared: int) -> Tensor:
    return x if x.shape[1] == num_shared else x.unflatten(1, (num_shared, -1)).sum(2)


def _as_scores(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """A mask to be added; none stands for a causal one."""
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        mask = mask.tril(key.shape[2] - query.shape[2])[None, None]
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, torch.finfo(query.dtype).min)


AttentionInterface.register(BRANCH_ATTENTION, branch_attention)  # type: ignore[arg-type]
AttentionMaskInterface.register(BRANCH_ATTENTION, sdpa_mask)
