"""What a value out of JSON must be, by the annotations of peft's configurations."""

import collections.abc
import dataclasses
import enum
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", dict: "an object"}


def field_hints(config_class: type) -> dict[str, Any]:
    """A dataclass's fields that JSON can give, and their annotations."""
    hints = typing.get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class) if field.init}


def fits(value: Any, hint: Any) -> bool:
    """Whether a value out of JSON is what an annotation asks for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return any(_is_choice(value, choice) for choice in arguments)
    if origin in (list, set, tuple, collections.abc.Sequence):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is dict or hint is dict:
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values() if arguments)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint]
    if dataclasses.is_dataclass(hint):
        return isinstance(value, dict) and value.keys() <= field_hints(hint).keys()  # type: ignore[arg-type]
    return value is None if hint is types.NoneType else isinstance(value, hint)


def describe(hint: Any) -> str:
    """What an annotation asks for, in words."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(one) for one in arguments))
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (list, set, tuple, collections.abc.Sequence):
        return f"a list, each item {describe(arguments[0])}"
    if hint is types.NoneType:
        return "null"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return "one of " + ", ".join(str(member.value) for member in hint)
    if dataclasses.is_dataclass(hint):
        return "an object with " + ", ".join(field_hints(hint))  # type: ignore[arg-type]
    return _NAMES.get(origin or hint, str(hint))


def out_of_range(name: str, value: Any, default: Any) -> str | None:
    """What a number must be that it is not, by its name and by what peft has in its place; None if it may be so."""
    if isinstance(value, Mapping):  # rank_pattern, alpha_pattern: by module
        return next((reason for item in value.values() if (reason := out_of_range(name, item, 8))), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if "dropout" in name:
        return None if 0 <= value < 1 else "at least 0 and below 1"
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    if is_number and default < 0:  # -1 stands for something
        return None
    # One of a block's size and a number of blocks or a rank is 0 where the other one counts.
    least = 1 if is_number and default >= 1 and isinstance(default, int) and not name.endswith("block_size") else 0
    return None if value >= least else f"{least} or above"


def _is_choice(value: Any, choice: Any) -> bool:
    if isinstance(choice, str) and "[" in choice:  # pissa_niter_[number of iters]
        return isinstance(value, str) and bool(re.fullmatch(re.sub(r"\[.*?\]", r"\\d+", choice), value))
    return value == choice and isinstance(value, bool) == isinstance(choice, bool)
