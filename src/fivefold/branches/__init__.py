"""Parallel branches in one decoder: a main text, and texts that go on from it beside each other."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fivefold.branches.lora import apply_lora, load_lora
    from fivefold.branches.model import branch_arguments, prepare_for_branches
    from fivefold.branches.plan import columnar_mask, isolated_mask
    from fivefold.branches.pretrain_data import ParallelPretrainCollator, ParallelPretrainDataset
    from fivefold.branches.rotary import (
        Interleaved2DRoPE,
        auto_pair_indices,
        patch_model_with_interleaved_2d_rope,
        positions_2d,
    )
    from fivefold.branches.settings import BranchScheme

# Imported when first used: torch takes seconds, `fivefold parallel --help` should not.
_HOMES = {
    "BranchScheme": "settings",
    "Interleaved2DRoPE": "rotary",
    "ParallelPretrainCollator": "pretrain_data",
    "ParallelPretrainDataset": "pretrain_data",
    "apply_lora": "lora",
    "auto_pair_indices": "rotary",
    "branch_arguments": "model",
    "columnar_mask": "plan",
    "isolated_mask": "plan",
    "load_lora": "lora",
    "patch_model_with_interleaved_2d_rope": "rotary",
    "positions_2d": "rotary",
    "prepare_for_branches": "model",
}
__all__ = [
    "BranchScheme",
    "Interleaved2DRoPE",
    "ParallelPretrainCollator",
    "ParallelPretrainDataset",
    "apply_lora",
    "auto_pair_indices",
    "branch_arguments",
    "columnar_mask",
    "isolated_mask",
    "load_lora",
    "patch_model_with_interleaved_2d_rope",
    "positions_2d",
    "prepare_for_branches",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fivefold.branches' has no attribute {name!r}")
    return getattr(importlib.import_module(f"fivefold.branches.{_HOMES[name]}"), name)
