"""Which layers of a model an adapter names; a low-rank layer is adapted by its two factors."""

import difflib
import re
from typing import Any

from transformers import PreTrainedModel

from fivefold.errors import ConfigError
from fivefold.nn.low_rank import LowRankLinear

_FACTORS = ("left", "right")
_ALL_LINEAR = "all-linear"


def resolve_targets(model: PreTrainedModel, config: Any, where: str) -> None:
    """Fill in peft's own targets for the family, check that each one is there, and put factors for low-rank layers.

    Args:
        model: as loaded.
        config: a PEFT configuration; changed in place.
        where: how messages name it.

    Raises:
        ConfigError: a target that matches no layer.
    """
    factored = {name for name, module in model.named_modules() if isinstance(module, LowRankLinear)}
    if getattr(config, "target_modules", None) is None and factored:
        _fill_in_defaults(model, config)
    for field in ("target_modules", "feedforward_modules", "exclude_modules"):
        targets = getattr(config, field, None)
        if not targets or (isinstance(targets, str) and targets.lower() == _ALL_LINEAR):
            continue
        if isinstance(targets, str):
            resolved = _resolve_pattern(model, targets, factored, f"{where}: {field}")
        else:
            resolved = _resolve_names(model, sorted(targets), factored, f"{where}: {field}")
        setattr(config, field, resolved)
    _resolve_names(model, sorted(getattr(config, "modules_to_save", None) or ()), set(), f"{where}: modules_to_save")


def _resolve_names(model: PreTrainedModel, targets: list[str], factored: set[str], what: str) -> set[str]:
    names = [name for name, _ in model.named_modules() if name]
    resolved: set[str] = set()
    for target in targets:
        matches = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matches:
            raise ConfigError(f"{what} names {target!r}, which no layer is called; {_nearest_layers(names, target)}")
        if factored.intersection(matches):
            resolved |= {f"{target}.{side}" for side in _FACTORS}
        if not factored.issuperset(matches):
            resolved.add(target)
    return resolved


def _resolve_pattern(model: PreTrainedModel, pattern: str, factored: set[str], what: str) -> str | set[str]:
    names = [name for name, _ in model.named_modules() if name]
    try:
        matches = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"{what} is {pattern!r}, no regular expression ({error}); give a list of names.") from None
    if not matches:
        hint = " a list of names is written in brackets:" if "," in pattern else ""
        raise ConfigError(
            f"{what} is {pattern!r}, a regular expression that no layer's whole name matches;{hint} "
            f"{_nearest_layers(names, pattern.split(',')[0])}"
        )
    if not factored.intersection(matches):
        return pattern
    own = {name for name in matches if name not in factored}
    return own | {f"{name}.{side}" for name in factored.intersection(matches) for side in _FACTORS}


def _fill_in_defaults(model: PreTrainedModel, config: Any) -> None:
    """What peft would take, which knows dense models only."""
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import constants

    family = str(model.config.model_type).removeprefix("low_rank_")
    mappings = {"target_modules": getattr(PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type], "target_module_mapping", {})}
    if config.peft_type == "IA3":
        mappings["target_modules"] = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
        mappings["feedforward_modules"] = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING
    for field, mapping in mappings.items():
        if family in mapping:
            setattr(config, field, set(mapping[family]))


def _nearest_layers(names: list[str], target: str) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()} - {*_FACTORS})
    # k_proj and k, wi and gate_proj: what is near is near by its first letters too.
    nearest = difflib.get_close_matches(target, ends, n=3, cutoff=0.5) or [end for end in ends if target[:1] == end[:1]]
    return f"near it are {', '.join(nearest)}." if nearest else f"there are {', '.join(ends)}."
