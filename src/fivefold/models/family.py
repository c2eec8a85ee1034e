"""Which family a model is of, and the settings with what follows from it filled in."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fivefold.errors import ConfigError, ModelError
from fivefold.models.settings import Family, ModelSettings

_DEFAULT_SHAPES: dict[Family, str] = {"t5": "small", "llama": "60m"}


def complete(settings: ModelSettings) -> ModelSettings:
    """The same settings with `model_type` and, for a fresh model, `model_config` filled in.

    Raises:
        ConfigError: settings that contradict each other or would change nothing.
        CheckpointError, ModelError: the stored model or the configuration file cannot be read, or is of no family.
    """
    if settings.model is not None:
        for name in ("model_config", "vocab_size", "tie_word_embeddings"):
            if getattr(settings, name) is not None:
                raise ConfigError(
                    f"--model {settings.model} has its own shape, so --{name} cannot change it; drop one of the two."
                )
    named, stated = settings.model or settings.model_config, _stated_family(settings)
    if settings.model_type and stated and settings.model_type != stated:
        raise ConfigError(f"{named} is of the family {stated}, but --model_type is {settings.model_type}; drop one.")
    family: Family = settings.model_type or stated or "t5"
    if family == "llama" and settings.dropout_rate is not None:
        raise ConfigError("--dropout_rate would change nothing: decoders such as LLaMA have no dropout; leave it out.")
    shape = None if settings.model else settings.model_config or _DEFAULT_SHAPES[family]
    return replace(settings, model_type=family, model_config=shape)


def stored_family(name_or_path: str) -> Family:
    """The family of a stored model, by its config.json.

    Args:
        name_or_path: folder or Hub id; an adapter is of its base model's family.

    Raises:
        CheckpointError: there is no config.json, or it cannot be read.
        ModelError: the model is neither a T5 nor a decoder.
    """
    from fivefold.adapters.folder import base_model
    from fivefold.t5.weights import read_config_fields

    if (base := base_model(name_or_path)) is not None:
        return stored_family(base)
    fields = read_config_fields(name_or_path)
    family = _family_of(fields)
    if family is None:
        raise ModelError(
            f"{name_or_path} is of model type {fields.get('model_type')!r} ({', '.join(_classes(fields))}); "
            "expected T5, mT5, umT5, or a decoder such as LLaMA that transformers opens as a causal language model."
        )
    return family


def _stated_family(settings: ModelSettings) -> Family | None:
    if settings.model is not None:
        return stored_family(settings.model)
    if settings.model_config is not None and Path(settings.model_config).is_file():
        from fivefold.llama.config import read_json_object

        return _family_of(read_json_object(Path(settings.model_config)))
    return None


def _family_of(fields: dict[str, Any]) -> Family | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    from fivefold.t5.config import T5_TYPES

    # Stored at low rank, a model's type and class are those of the dense one behind a prefix.
    model_type = (fields.get("model_type") or "").removeprefix("low_rank_")
    classes = [name.removeprefix("LowRank") for name in _classes(fields)]
    if model_type in T5_TYPES:
        return "t5"
    # BERT has a decoder class too, so the type alone does not say that the stored model is one.
    decoder_class = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    is_decoder = decoder_class is not None and (not classes or decoder_class in classes)
    return "llama" if is_decoder or "LLaMAForCausalLM" in classes else None  # as GaLore spells it


def _classes(fields: dict[str, Any]) -> list[str]:
    return fields.get("architectures") or []
