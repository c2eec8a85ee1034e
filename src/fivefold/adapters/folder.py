"""Folders of adapters: small, each naming a base model elsewhere."""

import json
import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fivefold.adapters.config import ADAPTER_CONFIG
from fivefold.adapters.moved_start import takes_from_base, without_start
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import CheckpointError, ModelError
from fivefold.nn.linear import as_plain_linear

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("fivefold")


def base_model(name_or_path: str | Path) -> str | None:
    """The folder or Hub id that a local adapter folder names as its base; None for what is no such folder.

    A relative path that leads nowhere from here is looked up from the folders above the adapter, so that both may be
    moved together.

    Raises:
        CheckpointError: the adapter's configuration cannot be read, or names no base.
    """
    folder = Path(name_or_path).expanduser()
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None
    base = _read_config(file).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{file} names no base model; write its folder to base_model_name_or_path.")
    places = [Path(base).expanduser(), *(above / base for above in folder.resolve().parents)]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None and found.resolve() == folder.resolve():
        raise CheckpointError(f"{file} names its own folder as the base model; write the base's to it.")
    return str(found or base)


def open_adapter(model: "PreTrainedModel", folder: str | Path) -> Any:
    """A model in an adapter out of a folder, nothing added to the model's weights.

    Returns:
        A `peft.PeftModel` in which nothing trains.

    Raises:
        CheckpointError: the adapter cannot be read, or does not fit the model.
    """
    from peft import PeftModel

    if _read_config(Path(folder) / ADAPTER_CONFIG).get("peft_type") == "GLORA":  # it looks at the very class
        as_plain_linear(model)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore")  # what peft still asks of transformers, and of shared tables
            warnings.filterwarnings("error", message="Found missing adapter keys")
            return PeftModel.from_pretrained(model, str(folder)).eval()
    except Exception as error:  # a damaged or foreign folder leads to whatever the library then stumbles over
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"The adapter in {folder} does not fit its base model ({reason}).") from error


def merge_adapter(adapted: Any) -> "PreTrainedModel":
    """The model of a `peft.PeftModel` with the adapter added into its weights.

    Raises:
        ModelError: an adapter that cannot be; the model is unchanged then.
    """
    if reason := _why_not_merged(adapted):
        raise ModelError(f"This adapter cannot be added to the weights: {reason}.")
    with quiet_peft():
        return adapted.merge_and_unload().eval()


def _why_not_merged(adapted: Any) -> str | None:
    config, model = adapted.peft_config[adapted.active_adapter], adapted.get_base_model()
    if str(config.peft_type.value) in ("BEFT", "LILY"):
        return f"the method {config.peft_type.value} has no form for that"
    if getattr(config, "lora_bias", False):
        return "lora_bias adds biases to layers that have none"
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    weights = [getattr(part, "base_layer", part).weight for part in (table, output) if part is not None]
    if weights[0] is weights[-1] and any(hasattr(part, "base_layer") for part in (table, output)):
        return "it changes the embeddings or the output layer alone, which share one table"
    return None


def with_adapter(model: "PreTrainedModel", folder: str | Path) -> "PreTrainedModel":
    """The model with an adapter added into its weights or, where its kind does not allow that, in its layers.

    Raises:
        CheckpointError: the adapter cannot be read, or does not fit the model.
    """
    adapted = open_adapter(model, folder)
    if reason := _why_not_merged(adapted):
        log.info("The adapter in %s stays beside the weights: %s.", folder, reason)
        return adapted.get_base_model().eval()
    return merge_adapter(adapted)


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
    if takes_from_base(model.peft_config[model.active_adapter]):  # type: ignore[index, operator]
        stored = without_start(stored)
    with quiet_peft():
        own = get_peft_model_state_dict(model, save_embedding_layers=False)  # type: ignore[arg-type]
        shapes = {name: tensor.shape for name, tensor in own.items()}
    if {name: tensor.shape for name, tensor in stored.items()} != shapes:
        raise CheckpointError(f"The adapter in {folder} is not of the shape that --adapter describes now.")
    with quiet_peft():
        set_peft_model_state_dict(model, stored)


def _read_config(file: Path) -> dict[str, Any]:
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(fields, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}: {error}); save it again.") from error
    return fields
