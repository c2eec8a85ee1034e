"""An adapter out of a PEFT JSON file on a model: the adapter alone trains, and is what is saved."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fivefold.adapters.config import AdapterSource, does_not_fit, read_adapter_config, source_name
from fivefold.adapters.moved_start import as_plain_lora, takes_from_base
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.adapters.targets import resolve_targets
from fivefold.errors import ConfigError
from fivefold.nn.dropout import quicken_dropout
from fivefold.nn.linear import as_plain_linear

log = logging.getLogger("fivefold")


def attach_adapter(model: PreTrainedModel, source: AdapterSource, base: str, *, seed: int) -> Any:
    """Wrap a model in a fresh adapter.

    Args:
        model: as loaded; its own parameters stop training.
        source: PEFT JSON file, folder that holds one, preset's name, or the fields themselves.
        base: the folder or Hub id of the model, which the adapter's folder names.
        seed: of the adapter's weights.

    Returns:
        A `peft.PeftModel`, whose `save_pretrained` writes the adapter alone.

    Raises:
        ConfigError: the file cannot be read, or describes nothing that fits the model.
    """
    from peft import get_peft_model

    config = read_adapter_config(source, is_t5=bool(model.config.is_encoder_decoder))
    saved_for = config.base_model_name_or_path
    try:
        resolve_targets(model, config, source_name(source))
    except ConfigError as error:
        raise ConfigError(f"{error} It was saved for {saved_for}." if saved_for else str(error)) from None
    if config.peft_type == "GLORA":  # it looks at the very class
        as_plain_linear(model)
    try:
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)
            adapted: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    except Exception as error:  # peft raises what each of its methods stumbles over
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise does_not_fit(source, config, f"{type(model).__name__} ({reason}).") from error
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise does_not_fit(source, config, f"{type(model).__name__}: nothing that trains is added.")
    if saved_for and Path(saved_for).name != Path(base).name:
        log.info("%s was saved for %s; here it is for %s.", source_name(source), saved_for, base)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    quicken_dropout(adapted)
    start = _state(adapted) if takes_from_base(config) else None
    adapted.save_pretrained = partial(_save_adapter, adapted, start)  # a partial is copied and pickled with the model
    return adapted


def holds_adapter(model: nn.Module) -> bool:
    """Whether a model is wrapped in an adapter of peft's."""
    return hasattr(model, "peft_config")


def without_wrapper(model: Any) -> PreTrainedModel:
    """The model itself, an adapter still in its layers."""
    return model.get_base_model() if holds_adapter(model) else model


def _state(model: Any) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    with quiet_peft():
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _save_adapter(model: Any, start: dict[str, Tensor] | None, folder: str) -> None:
    with quiet_peft():
        # By itself peft would look into the base's folder, and store a whole table beside an adapter of it.
        type(model).save_pretrained(model, folder, save_embedding_layers=False)
    if start is not None:
        as_plain_lora(Path(folder), start)
