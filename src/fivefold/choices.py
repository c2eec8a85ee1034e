"""Settings that have no use somewhere, such as those of another optimizer, so that none is ignored in silence.

A field of a settings dataclass says so in its metadata: {"optimizer": ("muon", "spectron")}. `flags` leaves such a
setting out of a recipe where another choice is typed; where it is typed itself, it is refused.
"""

from collections.abc import Iterable
from dataclasses import MISSING, Field, fields
from typing import Any

from fivefold.errors import ConfigError


def counts(field: Field[Any], choice: str, chosen: object) -> bool:
    """Whether a setting has a use where the setting `choice` is `chosen`."""
    return chosen in field.metadata.get(choice, (chosen,))


def refuse_unused(settings: Any, choice: str) -> None:
    """Refuse what was changed, but has no use under a choice in the same dataclass.

    Args:
        settings: a dataclass.
        choice: the name of the field that others depend on.

    Raises:
        ConfigError: there is something.
    """
    chosen = getattr(settings, choice)
    unused = [
        field.name
        for field in fields(settings)
        if not counts(field, choice, chosen) and getattr(settings, field.name) != field.default
    ]
    if unused:
        raise ConfigError(
            f"--{choice} {chosen} has no {' or '.join(unused)}: drop {'them' if unused[1:] else 'the flag'} or choose "
            f"another {choice}."
        )


def refuse_changed(settings: Any, names: Iterable[str], where: str) -> None:
    """Refuse settings that are not as they are by default.

    Args:
        settings: a dataclass.
        names: its fields that have no use here.
        where: what makes them useless, for the message, such as "without --loro_scope".

    Raises:
        ConfigError: one of them was changed.
    """
    defaults = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(settings)
    }
    if changed := [f"--{name}" for name in names if getattr(settings, name) != defaults[name]]:
        raise ConfigError(
            f"{' and '.join(changed)} would change nothing {where}; leave {'them' if changed[1:] else 'it'} out."
        )
