"""Adapters in peft's format: a small folder that changes the weights of a base model elsewhere."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fivefold.errors import CheckpointError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ADAPTER_CONFIG = "adapter_config.json"


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
    try:
        base = json.loads(file.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read ({type(error).__name__}: {error}); save it again.") from error
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{file} names no base model; write its folder to base_model_name_or_path.")
    places = [Path(base).expanduser(), *(above / base for above in folder.resolve().parents)]
    found = next((place for place in places if place.is_dir()), None)
    if found is not None and found.resolve() == folder.resolve():
        raise CheckpointError(f"{file} names its own folder as the base model; write the base's to it.")
    return str(found or base)


def with_adapter(model: "PreTrainedModel", folder: str | Path) -> "PreTrainedModel":
    """The model with an adapter added into its weights.

    Raises:
        CheckpointError: the adapter cannot be read, or does not fit the model.
        ModelError: an adapter of a kind that cannot be added to weights.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # what peft still asks of transformers
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
    except Exception as error:  # a damaged or foreign folder leads to whatever the library then stumbles over
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(f"The adapter in {folder} does not fit its base model ({reason}).") from error
    if not hasattr(adapted, "merge_and_unload"):
        kind = adapted.peft_config["default"].peft_type
        raise ModelError(f"The adapter in {folder} is of the kind {kind}, which cannot be added to a model's weights.")
    return adapted.merge_and_unload().eval()
