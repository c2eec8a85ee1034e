"""LoRA in files of the older kind: one .pth with `{module}.lora.A.weight` and `{module}.lora.B.weight`, scaled by 1."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import CheckpointError

_PREFIX = "base_model.model."
_THEIRS = {".lora_A.weight": ".lora.A.weight", ".lora_B.weight": ".lora.B.weight"}


def load_lora_file(model: Any, file: str | Path) -> None:
    """Copy such a file into a model's LoRA, all of it or nothing.

    Args:
        model: a `peft.PeftModel`; its lora_alpha should be its rank, since these files know no scale.

    Raises:
        CheckpointError: unreadable, or another LoRA than the model's.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    try:
        stored = torch.load(file, map_location="cpu", weights_only=True)
        named = {_renamed(key.removeprefix("module."), to_peft=True): tensor for key, tensor in stored.items()}
    except Exception as error:  # a damaged file leads to whatever the reader then stumbles over
        raise CheckpointError(f"{file} holds no LoRA that can be read ({type(error).__name__}: {error}).") from error
    with quiet_peft():
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes, expected = ({name: list(tensor.shape) for name, tensor in one.items()} for one in (named, own))
    if shapes != expected:
        different = sorted(name for name in {*shapes, *expected} if shapes.get(name) != expected.get(name))
        name = different[0]
        raise CheckpointError(
            f"{file} is the LoRA of another model, of other layers or another rank: {name} is "
            f"{shapes.get(name, 'missing')} there and {expected.get(name, 'missing')} here ({len(different):,} differ)."
        )
    with quiet_peft():
        set_peft_model_state_dict(model, named)


def write_lora_file(adapter: str | Path, file: Path) -> None:
    """An adapter's folder as such a file.

    Raises:
        CheckpointError: it holds anything but plain LoRA matrices.
    """
    tensors: dict[str, Tensor] = load_file(Path(adapter) / "adapter_model.safetensors")
    try:
        renamed = {_renamed(name, to_peft=False): tensor for name, tensor in tensors.items()}
    except ValueError as error:
        raise CheckpointError(f"{adapter} is no plain LoRA ({error}); such files hold nothing else.") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(renamed, file)


def _renamed(name: str, *, to_peft: bool) -> str:
    for ours, theirs in _THEIRS.items():
        if to_peft and name.endswith(theirs):
            return _PREFIX + name.removesuffix(theirs) + ours
        if not to_peft and name.endswith(ours):
            return name.removesuffix(ours).removeprefix(_PREFIX) + theirs
    raise ValueError(f"the key {name}")
