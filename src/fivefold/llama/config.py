"""The shape of a LLaMA by a preset's name or from a JSON file, as transformers' own configuration."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig
from transformers.activations import ACT2FN

from fivefold.errors import ModelError

_PRESETS = resources.files("fivefold.llama") / "presets"
_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
)
_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


def preset_names() -> list[str]:
    """Names of the built-in presets, sorted."""
    return sorted(file.name.removesuffix(".json") for file in _PRESETS.iterdir() if file.name.endswith(".json"))


def preset_name(written: str) -> str:
    """The preset that a name such as "60m", "llama_60m" or "configs/llama_60m.json" means, existing or not."""
    return "llama_" + Path(written).name.removesuffix(".json").removeprefix("llama_")


def get_preset(name: str, **changes: Any) -> LlamaConfig:
    """A built-in preset, with some fields set differently.

    Source: the configurations of the GaLore family of papers (arXiv:2403.03507), which LORO's tables use.

    Args:
        name: "60m" or "llama_60m"; see `preset_names`.
        changes: fields of `transformers.LlamaConfig`.

    Raises:
        ModelError: no such preset, or a shape that cannot be.
    """
    name = preset_name(name)
    if name not in preset_names():
        raise ModelError(f"There is no LLaMA preset {name!r}; there are {', '.join(preset_names())}.")
    return _checked(json.loads((_PRESETS / f"{name}.json").read_text()) | changes, name)


def from_name_or_file(name_or_file: str, **changes: Any) -> LlamaConfig:
    """A JSON file if there is one of that name, else the preset that its last part names.

    Raises:
        ModelError: neither, a file that is no configuration of a LLaMA, or a shape that cannot be.
    """
    path = Path(name_or_file)
    if path.is_file():
        return _checked(_llama_fields(path) | changes, str(path))
    if preset_name(name_or_file) not in preset_names():
        raise ModelError(
            f"--model_config {name_or_file!r} is neither a file nor a LLaMA preset; the presets are "
            f"{', '.join(preset_names())}."
        )
    return get_preset(name_or_file, **changes)


def read_json_object(path: Path) -> dict[str, Any]:
    """The fields of a configuration file.

    Raises:
        ModelError: the file is no JSON object.
    """
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path} is not valid JSON ({error}); a model configuration is a JSON object.") from None
    if not isinstance(fields, dict):
        raise ModelError(f"{path} holds a {type(fields).__name__}; a model configuration is a JSON object.")
    return fields


def _llama_fields(path: Path) -> dict[str, Any]:
    """Fields of a file by transformers, or by GaLore and its descendants, who write two of them in their own way."""
    fields = read_json_object(path)
    if (model_type := fields.pop("model_type", "llama")) != "llama":
        raise ModelError(f"{path} is of model type {model_type!r}; a fresh decoder is of type 'llama'.")
    if "max_sequence_length" in fields:
        fields.setdefault("max_position_embeddings", fields.pop("max_sequence_length"))
    if fields.get("pad_token_id") == -1:  # their "none", which torch takes for the last row
        del fields["pad_token_id"]
    return fields


def _checked(fields: dict[str, Any], source: str) -> LlamaConfig:
    for name in _SIZES:
        if isinstance(size := fields.get(name), int) and size < 1:
            raise ModelError(f"{source}: {name} is {size}; it must be at least 1.")
    try:
        config = LlamaConfig(**fields)
    except StrictDataclassError as error:
        raise ModelError(f"{source} is no shape of a LLaMA: {str(error).splitlines()[-1].strip()}") from None
    heads, key_heads, head_dim = (int(getattr(config, name) or 0) for name in _HEADS)
    if heads % key_heads:
        raise ModelError(
            f"{source}: num_attention_heads {heads} must be a multiple of num_key_value_heads {key_heads}."
        )
    if head_dim % 2:
        raise ModelError(f"{source}: a head has {head_dim} dimensions; rotary positions need an even number.")
    if config.hidden_act not in ACT2FN:
        raise ModelError(f"{source}: hidden_act is {config.hidden_act!r}, which transformers does not know; use silu.")
    return config
