"""PEFT JSON files, read strictly: peft itself drops what it does not know."""

import dataclasses
import difflib
import json
import logging
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from fivefold.adapters.field_types import describe, field_hints, fits, out_of_range
from fivefold.adapters.peft_warnings import quiet_peft
from fivefold.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
AdapterSource = str | Mapping[str, Any]
"""A PEFT JSON file, a folder that holds one, a preset's name; or the fields themselves."""

log = logging.getLogger("fivefold")

_OTHER_TASKS = {
    "SEQ_CLS": "labels a text",
    "TOKEN_CLS": "labels each token",
    "QUESTION_ANS": "marks the answer in a text",
    "FEATURE_EXTRACTION": "makes vectors of texts",
}
_PROMPT_KINDS = "adds to what is read, which packed rows, chat and generate have no place for"
_PREPARED_STARTS = {
    "eva": "a look at the data",
    "corda": "a look at the data",
    "lora_ga": "gradients of the base",
    "loftq": "a base that it quantises itself",
}
_NEED_MORE = {
    "ADAPTION_PROMPT": _PROMPT_KINDS,
    "SHADOW": "puts a second model beside the first",
    "XLORA": "mixes adapters that are trained already",
    "POLY": "needs a task for each example",
}


def preset_names() -> list[str]:
    """The adapters that fivefold brings along, by name."""
    return sorted(path.name.removesuffix(".json") for path in _presets().iterdir() if path.name.endswith(".json"))


def find_adapter_file(name: str, *, say: bool = True) -> Path:
    """A file of this name, the one in a folder of this name, or the preset that a missing file is called after.

    Raises:
        ConfigError: there is none of them.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        if (path / ADAPTER_CONFIG).is_file():
            return path / ADAPTER_CONFIG
        raise ConfigError(f"--adapter {name} is a folder without {ADAPTER_CONFIG}; give a PEFT JSON file.")
    names, stem = preset_names(), path.name.removesuffix(".json")
    if stem in names:
        if say and name != stem:
            log.info("--adapter %s: there is no such file; the preset %s is taken.", name, stem)
        return Path(str(_presets() / f"{stem}.json"))
    raise ConfigError(f"--adapter {name}: there is no such file, and no preset of that name; {_nearest(stem, names)}")


def read_adapter_config(source: AdapterSource, *, is_t5: bool, say: bool = True) -> Any:
    """A PEFT configuration for training.

    Args:
        source: see `AdapterSource`.
        is_t5: the model is an encoder-decoder.
        say: log what is taken otherwise than the file says.

    Returns:
        An object of peft's class for the method, `inference_mode` off, since with it nothing would train.

    Raises:
        ConfigError: no JSON, a method, field or value that peft does not know, or a configuration for another task.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    fields, where = _read_fields(source, say)
    kind = _peft_type(fields, where)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[kind]  # type: ignore[index]
    hints = field_hints(config_class)
    defaults = {field.name: field.default for field in dataclasses.fields(config_class)}
    for name, value in fields.items():
        if name not in hints:
            raise ConfigError(f"{where} has a field {name!r} that {kind} does not know; {_nearest(name, hints)}")
        if not (fits(value, hints[name]) or value == defaults[name] or name in ("peft_type", "task_type")):
            raise ConfigError(f"{where}: {name} is {value!r}; expected {describe(hints[name])}.")
        if reason := out_of_range(name, value, defaults[name]):
            raise ConfigError(f"{where}: {name} is {value!r}; it must be {reason}.")
    own = _task_type(fields, where, is_t5)
    if say and fields.get("inference_mode"):
        log.info("%s says inference_mode, under which nothing would train; it is left out.", where)
    given = {**fields, "peft_type": kind, "task_type": own, "inference_mode": False}
    if kind == "ADALORA":
        given |= _provisional_total_step(given, say)
        init_r, target_r = (given.get(name, defaults[name]) for name in ("init_r", "target_r"))
        if target_r >= init_r:
            raise ConfigError(f"{where}: target_r is {target_r} and init_r {init_r}; ranks fall to a lower target_r.")
    try:
        with quiet_peft():
            config = config_class(**given)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{where} cannot be used: {_sentence(error)} {_own_fields(fields)}") from None
    if config.is_prompt_learning or kind in _NEED_MORE:
        what = _NEED_MORE.get(kind, _PROMPT_KINDS)
        raise ConfigError(f"{where}: peft_type {kind} {what}; give one that changes layers, such as LORA.")
    start = fields.get("init_lora_weights")
    if start in _PREPARED_STARTS:
        raise ConfigError(
            f"{where}: init_lora_weights {start} starts from {_PREPARED_STARTS[start]}, which fivefold does not do; "
            "say pissa, or leave it out."
        )
    return config


def source_name(source: AdapterSource) -> str:
    """How messages name it."""
    return f"--adapter {source}" if isinstance(source, str) else "The adapter of --lora_r and its kin"


def does_not_fit(source: AdapterSource, config: Any, what: str) -> ConfigError:
    """The error for an adapter that cannot be put on a model."""
    fields, where = _read_fields(source, False)
    base = config.base_model_name_or_path
    saved = f" It was saved for {base}." if base else ""
    return ConfigError(f"{where} does not fit {what} {_own_fields(fields)}{saved}")


def _read_fields(source: AdapterSource, say: bool) -> tuple[dict[str, Any], str]:
    if not isinstance(source, str):
        return dict(source), source_name(source)
    file, where = find_adapter_file(source, say=say), f"--adapter {source}"
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} cannot be read as JSON ({error}); give a PEFT JSON file.") from None
    if not isinstance(fields, dict):
        raise ConfigError(f"{where} holds a {type(fields).__name__}; expected an object with peft_type and its fields.")
    return fields, where


def _peft_type(fields: Mapping[str, Any], where: str) -> str:
    from peft import PeftType

    kinds = [kind.value for kind in PeftType]
    given = fields.get("peft_type")
    if given is None:
        raise ConfigError(f"{where} has no peft_type, so nobody knows its method; expected one of {', '.join(kinds)}.")
    kind = str(given).upper()
    if kind not in kinds:
        raise ConfigError(f"{where} has the peft_type {given!r}, which peft does not have; {_nearest(kind, kinds)}")
    return kind


def _task_type(fields: Mapping[str, Any], where: str, is_t5: bool) -> str:
    from peft import TaskType

    own, given = (TaskType.SEQ_2_SEQ_LM if is_t5 else TaskType.CAUSAL_LM).value, fields.get("task_type")
    task = own if given is None else str(given).upper()
    if task == own:
        return own
    if task in _OTHER_TASKS:
        raise ConfigError(
            f"{where} has the task_type {given}, which {_OTHER_TASKS[task]} with a head of its own; fivefold trains "
            f"text to text: write the labels as answers and say {own}, or leave task_type out."
        )
    raise ConfigError(
        f"{where} has the task_type {given!r}, but the model's is {own}; change task_type or leave it out."
    )


def _provisional_total_step(fields: Mapping[str, Any], say: bool) -> dict[str, int]:
    """AdaLoRA's number of steps is the run's, which is known once the data are read; peft wants one at once."""
    if say and fields.get("total_step") is not None:
        log.info("AdaLoRA's total_step is %s there; the run's own number of steps is taken.", fields["total_step"])
    return {"total_step": (fields.get("tinit") or 0) + (fields.get("tfinal") or 0) + 1}


def _own_fields(fields: Mapping[str, Any]) -> str:
    said = [name for name in fields if name not in ("peft_type", "task_type", "inference_mode", "peft_version")]
    return f"Its fields are {', '.join(said)}." if said else "It says nothing but its kind."


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(known)}."


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _presets() -> Any:
    return resources.files("fivefold.adapters") / "presets"
