"""LoRA put into a model's own layers, as scripts for parallel branches do it, in peft's layers.

`fivefold parallel` trains a `peft.PeftModel` instead; these are for scripts that know the older files and names.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fivefold.errors import CheckpointError, ModelError

_NAME = "default"


def apply_lora(model: nn.Module, rank: int = 8, alpha: float | None = None) -> None:
    """Add LoRA to all linear layers but the output layer, in place; then only that trains.

    Args:
        model: any of transformers'.
        rank: of what is added, which starts at nothing.
        alpha: its scale is alpha / rank; by default 1.
    """
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules="all-linear")  # type: ignore[arg-type]
    inject_adapter_in_model(config, model, adapter_name=_NAME)


def load_lora(model: nn.Module, file: str | Path) -> None:
    """Copy a .pth file with `{module}.lora.A.weight` and `{module}.lora.B.weight` into a model's LoRA.

    Args:
        model: as `apply_lora` leaves it.

    Raises:
        CheckpointError: unreadable, or another LoRA than the model's; the model is unchanged then.
        ModelError: the model has no LoRA.
    """
    layers = {name: layer for name, layer in model.named_modules() if _NAME in getattr(layer, "lora_A", {})}
    if not layers:
        raise ModelError(f"{type(model).__name__} has no LoRA to load weights into; call apply_lora first.")
    own: dict[str, Any] = {}
    for name, layer in layers.items():
        matrices: Any = layer
        own[f"{name}.lora.A.weight"] = matrices.lora_A[_NAME].weight
        own[f"{name}.lora.B.weight"] = matrices.lora_B[_NAME].weight
    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        shapes = {str(name): list(tensor.shape) for name, tensor in stored.items()}
    except Exception as error:  # a damaged file leads to whatever the reader then stumbles over
        raise CheckpointError(f"{file} holds no LoRA that can be read ({type(error).__name__}: {error}).") from error
    expected = {name: list(weight.shape) for name, weight in own.items()}
    if shapes != expected:
        name = min(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
        raise CheckpointError(
            f"{file} is the LoRA of another model, of other layers or another rank: {name} is "
            f"{shapes.get(name, 'missing')} there and {expected.get(name, 'missing')} here."
        )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(stored[name])
