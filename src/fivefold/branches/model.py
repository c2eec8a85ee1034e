"""A decoder that reads branches: its positions, its attention, and a probe of whether it keeps them apart."""

from typing import Any

import torch
from torch import Tensor, nn

from fivefold.branches.attention import BRANCH_ATTENTION
from fivefold.branches.plan import BranchPlan
from fivefold.branches.rotary import (
    Interleaved2DRoPE,
    auto_pair_indices,
    patch_model_with_interleaved_2d_rope,
    positions_2d,
)
from fivefold.branches.settings import BranchScheme
from fivefold.errors import ModelError


def prepare_for_branches(model: nn.Module, scheme: BranchScheme) -> None:
    """Change a transformers decoder so that `branch_arguments` have their meaning; ordinary calls stay what they were.

    Raises:
        ConfigError: a ratio out of range.
        ModelError: a model without rotary positions where the scheme wants 2D RoPE, or one that does not keep branches
            apart, such as those that carry a state from token to token.
    """
    decoder: Any = model
    pairs = auto_pair_indices(model, scheme.rope_2d_ratio) if scheme.rope_2d_ratio else []
    before = decoder.config._attn_implementation
    plain = None if next(decoder.parameters()).is_meta else _logits(model, _IDS[:, _ALONE])
    roads = [BRANCH_ATTENTION] if getattr(decoder, "_supports_attention_backend", False) else []
    for road in (*roads, "sdpa"):  # with a mask, which costs more
        decoder.set_attn_implementation(road)
        if plain is None or _keeps_apart(model, plain):
            break
    else:
        decoder.set_attn_implementation(before)
        raise ModelError(
            f"{type(model).__name__} lets branches see each other whatever it is told, as models do that carry a state "
            "from token to token or make their masks themselves; take another model, such as a Llama or a Qwen."
        )
    if not pairs:
        return
    patch_model_with_interleaved_2d_rope(model, pairs, scheme.stride, "offset")
    positions = positions_2d(0 * _TIMES, _TIMES)[:, _ALONE].to(next(decoder.parameters()).device)
    if plain is not None and not _is_close(_logits(model, _IDS[:, _ALONE], position_ids=positions), plain):
        raise ModelError(
            f"{type(model).__name__} uses positions for more than its rotary embeddings, so that 2D RoPE cannot be had "
            "there; give --no_patch_rope."
        )
    for module in model.modules():
        if isinstance(module, Interleaved2DRoPE):
            module.mode = scheme.rope_2d_mode


def branch_arguments(model: nn.Module, branches: Tensor, times: Tensor, scheme: BranchScheme) -> dict[str, Any]:
    """What a call of the model takes beside `input_ids`.

    Args:
        model: prepared, perhaps wrapped.
        branches: [B, N], 0 for main, -1 for padding.
        times: [B, N].
    """
    bare: Any = getattr(model, "module", model)
    plan = BranchPlan(branches, times, scheme.branch_visibility)
    positions = positions_2d(branches, times) if scheme.rope_2d_ratio else times
    if bare.config._attn_implementation != BRANCH_ATTENTION:
        return {"position_ids": positions, "attention_mask": plan.mask()}
    # A mask of four dimensions keeps transformers from making one out of the positions; nothing reads it.
    unread = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=branches.device)
    return {"position_ids": positions, "attention_mask": unread, "branches": plan}


# A main text of four tokens, a branch of three and another one of four.
_IDS = torch.tensor([[5, 6, 7, 8, 9, 6, 7, 5, 11, 8, 6]])
_BRANCHES = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]])
_TIMES = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7]])
_ALONE = [0, 1, 2, 3, 7, 8, 9, 10]
"""Main and the second branch."""


def _keeps_apart(model: Any, plain: Tensor) -> bool:
    """Whether main and a branch are read beside any other branch as the model reads them alone."""
    device = next(model.parameters()).device
    try:
        arguments = branch_arguments(model, _BRANCHES.to(device), _TIMES.to(device), BranchScheme(rope_2d_ratio=0.0))
        together = _logits(model, _IDS, **arguments)[:, _ALONE]
        changed = _logits(model, torch.where(_BRANCHES == 1, _IDS + 5, _IDS), **arguments)[:, _ALONE]
        # A convolution leaks little from one token to the next but one.
        is_tight = _is_close(changed, together, 1e-6)
        return is_tight and _is_close(together, plain) and _is_close(_logits(model, _IDS[:, _ALONE]), plain)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False  # it does not know the arguments


@torch.no_grad()
def _logits(model: Any, ids: Tensor, **arguments: Any) -> Tensor:
    was_training = model.training
    model.eval()
    try:
        return model(input_ids=ids.to(next(model.parameters()).device), use_cache=False, **arguments).logits
    finally:
        model.train(was_training)


def _is_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> bool:
    tolerance = tolerance if theirs.dtype == torch.float32 else 3e-2
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
