"""An adapter out of a PEFT JSON file on a model: the adapter alone trains, and is what is saved."""

import dataclasses
import difflib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from fivefold.errors import CheckpointError, ConfigError
from fivefold.nn.dropout import quicken_dropout

log = logging.getLogger("fivefold")


def attach_adapter(model: PreTrainedModel, file: str, base: str, *, seed: int) -> Any:
    """Wrap a model in a fresh adapter.

    Args:
        model: as loaded; its own parameters stop training.
        file: JSON file with the fields of a PEFT configuration; `inference_mode` is ignored, since with it nothing
            would train.
        base: the folder or Hub id of the model, which the adapter's folder names.
        seed: of the adapter's weights.

    Returns:
        A `peft.PeftModel`, whose `save_pretrained` writes the adapter alone.

    Raises:
        ConfigError: the file cannot be read, or describes nothing that fits the model.
    """
    from peft import get_peft_model

    config = read_adapter_config(file, is_t5=bool(model.config.is_encoder_decoder))
    if config.is_prompt_learning:
        raise ConfigError(
            f"--adapter {file} is of the kind {config.peft_type.value}, which adds to what is read; give one that "
            "changes layers, such as LORA."
        )
    try:
        with torch.random.fork_rng(devices=[]), quiet_peft():
            torch.manual_seed(seed)
            adapted: Any = get_peft_model(model, config)  # type: ignore[arg-type]
    except Exception as error:  # peft raises what each of its methods stumbles over
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ConfigError(f"--adapter {file} does not fit {type(model).__name__} ({reason}).") from error
    if not any(parameter.requires_grad for parameter in adapted.parameters()):
        raise ConfigError(f"--adapter {file} adds nothing to {type(model).__name__} that trains; see its fields.")
    quicken_dropout(adapted)
    config.base_model_name_or_path = str(Path(base).resolve()) if Path(base).exists() else base
    adapted.save_pretrained = partial(_save_adapter, adapted)  # a partial is copied and pickled with the model
    return adapted


def read_adapter_config(file: str, *, is_t5: bool) -> Any:
    """A PEFT configuration for training.

    Raises:
        ConfigError: no JSON, an unknown method or field, or a configuration for another kind of model.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, TaskType

    try:
        fields = json.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--adapter {file} cannot be read as JSON ({error}); give a PEFT JSON file.") from None
    kinds = [kind.value for kind in PeftType]
    kind = fields.get("peft_type") if isinstance(fields, dict) else None
    if kind not in kinds:
        raise ConfigError(f"--adapter {file} has the peft_type {kind!r}; expected one of {', '.join(kinds)}.")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"{kind} has {', '.join(known)}."
            raise ConfigError(f"--adapter {file} has a field {name!r} that {kind} does not know; {hint}")
    own = TaskType.SEQ_2_SEQ_LM if is_t5 else TaskType.CAUSAL_LM
    if fields.get("task_type") not in (None, own.value):
        raise ConfigError(
            f"--adapter {file} is for the task {fields['task_type']}, but the model's is {own.value}; change task_type "
            "or leave it out."
        )
    if fields.get("inference_mode"):
        log.info("--adapter %s says inference_mode, under which nothing would train; it is left out.", file)
    try:
        return config_class(**fields | {"task_type": own, "inference_mode": False})
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--adapter {file} cannot be used ({error}).") from None


def holds_adapter(model: nn.Module) -> bool:
    """Whether a model is wrapped in an adapter of peft's."""
    return hasattr(model, "peft_config")


def without_wrapper(model: Any) -> PreTrainedModel:
    """The model itself, an adapter still in its layers."""
    return model.get_base_model() if holds_adapter(model) else model


def load_adapter_weights(model: nn.Module, folder: str | Path) -> None:
    """Copy a folder's adapter into a model with one of the same shape, all of it or nothing.

    Raises:
        CheckpointError: unreadable, or the weights of another adapter.
    """
    from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

    try:
        stored = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # damaged files lead to whatever the library then stumbles over
        raise CheckpointError(f"{folder} holds no adapter that can be read ({error}).") from error
    with quiet_peft():
        shapes = {name: tensor.shape for name, tensor in get_peft_model_state_dict(model).items()}
    if {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise CheckpointError(f"The adapter in {folder} is not of the shape that --adapter describes now.")
    with quiet_peft():
        set_peft_model_state_dict(model, stored)


def _save_adapter(model: Any, folder: str) -> None:
    with quiet_peft():
        type(model).save_pretrained(model, folder)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings by which peft reports on transformers and on what it has decided itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
