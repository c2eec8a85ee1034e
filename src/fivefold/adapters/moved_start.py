"""LoRAs that begin with a part of the base's weights, which they take out of them: PiSSA and OLoRA.

Such an adapter fits only the base that is left. Saved beside the factors that it began with, B A - B0 A0 of twice the
rank, it is a plain LoRA that fits the base as it lies in its folder, and no layer is decomposed again to open it.

Source: Meng et al. 2024 (PiSSA), "converting PiSSA to LoRA".
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"
_FIRST, _SECOND = ".lora_A.weight", ".lora_B.weight"


def takes_from_base(config: Any) -> bool:
    """Whether a LoRA's start changes the weights of its base."""
    return str(getattr(config, "init_lora_weights", "")).startswith(("pissa", "olora"))


def as_plain_lora(folder: Path, start: dict[str, Tensor]) -> None:
    """Rewrite what peft has saved.

    Args:
        folder: just written, with the factors A and B and their configuration.
        start: by the same names, the factors A0 and B0 of the start.
    """
    weights = load_file(folder / _WEIGHTS)
    for name, factor in weights.items():
        if name.endswith(_FIRST):
            weights[name] = torch.cat([factor, start[name].to(factor)], 0)
        elif name.endswith(_SECOND):
            weights[name] = torch.cat([factor, -start[name].to(factor)], 1)
    save_file(weights, folder / _WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    # So that the scale, alpha / r or alpha / sqrt(r), stays.
    factors = {"r": 2, "rank_pattern": 2}
    factors |= dict.fromkeys(("lora_alpha", "alpha_pattern"), math.sqrt(2) if config["use_rslora"] else 2)
    for field, factor in factors.items():
        value = config[field]
        config[field] = (
            {name: one * factor for name, one in value.items()} if isinstance(value, dict) else value * factor
        )
    config["init_lora_weights"] = True
    (folder / _CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")


def without_start(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The factors A and B of what `as_plain_lora` wrote."""
    halves = dict(weights)
    for name, factor in weights.items():
        if name.endswith(_FIRST):
            halves[name] = factor[: len(factor) // 2]
        elif name.endswith(_SECOND):
            halves[name] = factor[:, : factor.shape[1] // 2]
    return halves
