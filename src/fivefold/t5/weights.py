"""What a stored T5 says about itself: the names in its weight files settle what its configuration leaves open."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils.hub import cached_file

from fivefold.errors import CheckpointError
from fivefold.t5.config import T5Config

log = logging.getLogger("fivefold")

# In transformers' own order of preference; an index lists the files of a sharded model.
_WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_EMBEDDING_NAMES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def reconcile_with_file(
    name_or_path: str | PathLike[str], config: T5Config | None, load_arguments: dict[str, Any]
) -> tuple[T5Config, dict[str, str]]:
    """Read or complete the configuration of a stored model by looking at its weights.

    The output layer is tied if the files hold no `lm_head.weight`, or one equal to the embedding table: version 5 of
    transformers writes `tie_word_embeddings: true` for models whose output layer is their own.

    Args:
        name_or_path: folder or Hub id.
        config: what the caller passed, changed in place; read from the folder if None.
        load_arguments: further arguments of `from_pretrained`, of which those about the Hub are used.

    Returns:
        (config, key_mapping): the mapping renames the stored embedding table where it is not called `shared`.

    Raises:
        CheckpointError: no weights there, or unreadable.
    """
    hub = {name: load_arguments[name] for name in _HUB_ARGUMENTS if name in load_arguments}
    if config is None:
        config = read_config(name_or_path, **hub)
    names = _stored_names(name_or_path, hub)
    table = next((name for name in _EMBEDDING_NAMES if name in names), None)
    if table is None:
        raise CheckpointError(f"The weights of {name_or_path} hold no token embeddings; this is not a complete T5.")
    if "lm_head.weight" in names:
        # v5 keys mean what they say here: tied only if the two really are one.
        config.tie_word_embeddings = torch.equal(_read(names, "lm_head.weight"), _read(names, table))
    else:
        config.tie_word_embeddings = True
    key_mapping = {} if table == "shared.weight" else {"^" + table.replace(".", r"\."): "shared.weight"}
    return config, key_mapping


@contextmanager
def library_report_off() -> Iterator[None]:
    """Keep back transformers' table of what fits and what does not; `check_loaded` says it in one sentence."""
    library = logging.getLogger("transformers.modeling_utils")
    before, library.disabled = library.disabled, True  # not by its level: raised, that sets off other warnings
    try:
        yield
    finally:
        library.disabled = before


def check_loaded(name_or_path: str | PathLike[str], info: dict[str, Any]) -> None:
    """Refuse weights that do not fill the model: transformers draws missing ones at random.

    Args:
        info: the loading info of `PreTrainedModel.from_pretrained`.

    Raises:
        CheckpointError: a weight is missing or has another shape than the configuration says.
    """
    missing, misshapen = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    if misshapen:
        name, stored, expected = misshapen[0]
        problem = f"{name} has the shape {list(stored)}, not {list(expected)}"
    elif missing:
        problem = f"{missing[0]} is missing"
    else:
        if unused := sorted(info["unexpected_keys"]):
            log.warning(
                "%s: %d stored weights have no place in the model, such as %s", name_or_path, len(unused), unused[0]
            )
        return
    others = len(misshapen) + len(missing) - 1
    more = f" ({others} more like it)" if others else ""
    raise CheckpointError(
        f"The weights in {name_or_path} do not fit its config.json: {problem}{more}; fetch or save the model again."
    )


def read_config(name_or_path: str | PathLike[str], **hub: Any) -> T5Config:
    """Read the configuration of a stored model of any of T5's types.

    Args:
        name_or_path: folder or Hub id.
        hub: those arguments of `from_pretrained` that are about the Hub.

    Raises:
        CheckpointError: there is none, or it is no JSON.
        ModelError: it is not a T5's.
    """
    # Not from_pretrained: it warns of every model type but t5, which from_dict knows how to read.
    return T5Config.from_dict(read_config_fields(name_or_path, **hub))


def read_config_fields(name_or_path: str | PathLike[str], **hub: Any) -> dict[str, Any]:
    """What a stored model's config.json holds, whatever the model is; arguments as `read_config`.

    Raises:
        CheckpointError: there is none, or it is no JSON.
    """
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise CheckpointError(f"{name_or_path} holds no config.json; give the folder of a saved model.")
    try:
        return T5Config.get_config_dict(name_or_path, **hub)[0]
    except OSError as error:
        raise CheckpointError(
            f"No model at {name_or_path!s}: it is no local folder with a config.json, and as a Hub id it could not be "
            f"read ({str(error).splitlines()[0]})."
        ) from None


def _stored_names(name_or_path: str | PathLike[str], hub: dict[str, Any]) -> dict[str, Path]:
    """Every stored weight's name and the file that holds it."""
    for file_name in _WEIGHT_FILES:
        found = cached_file(
            name_or_path,
            file_name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
            **hub,
        )
        if found is None:
            continue
        file = Path(found)
        if file_name.endswith(".index.json"):
            return {name: file.parent / part for name, part in json.loads(file.read_text())["weight_map"].items()}
        return dict.fromkeys(_names_in(file), file)
    raise CheckpointError(f"No weights in {name_or_path}: expected one of {', '.join(_WEIGHT_FILES)}.")


def _names_in(file: Path) -> list[str]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                return list(tensors.keys())
        return list(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except (SafetensorError, UnpicklingError, RuntimeError, OSError) as error:
        raise CheckpointError(
            f"{file} cannot be read as weights ({str(error).splitlines()[0]}); it may be cut off or no weight file."
        ) from None


def _read(files: dict[str, Path], name: str) -> Tensor:
    file = files[name]
    if file.suffix == ".safetensors":
        with safe_open(file, "pt") as tensors:
            return tensors.get_tensor(name)
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)[name]
