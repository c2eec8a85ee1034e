"""The scheme by which a model's branches are told apart, beside its weights."""

import json
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from fivefold.branches.settings import BranchScheme
from fivefold.errors import CheckpointError

BRANCHES = "branches.json"
_MOST = "most_branches"


def save_with_scheme(model: Any, scheme: BranchScheme, most: int) -> None:
    """Let the model's `save_pretrained` write its scheme, too.

    Args:
        most: branches that it has met at once.
    """
    model.save_pretrained = partial(_save, model.save_pretrained, asdict(scheme) | {_MOST: most})


def _save(save: Any, fields: dict[str, Any], folder: str) -> None:
    save(folder)
    (Path(folder) / BRANCHES).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def stored_scheme(folder: str | Path) -> BranchScheme | None:
    """The scheme of a model or an adapter that was trained on branches; None for any other.

    Raises:
        CheckpointError: the file cannot be read.
    """
    stored = _stored(folder)
    if stored is None:
        return None
    try:
        return BranchScheme(**{name: value for name, value in stored.items() if name != _MOST})
    except TypeError as error:
        raise CheckpointError(f"{Path(folder) / BRANCHES} cannot be read ({error}); fetch the folder again.") from error


def most_branches(folder: str | Path) -> int | None:
    """Branches that such a model has met at once; None for any other."""
    return (_stored(folder) or {}).get(_MOST)


def _stored(folder: str | Path) -> dict[str, Any] | None:
    file = Path(folder) / BRANCHES
    if not file.is_file():
        return None
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        assert isinstance(stored, dict)
    except (ValueError, AssertionError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch the folder again.") from error
    return stored


def check_scheme(folder: str | Path, scheme: BranchScheme) -> None:
    """Refuse a model whose branches were told apart otherwise.

    Raises:
        CheckpointError: they were.
    """
    stored = stored_scheme(folder)
    if stored is None:
        return
    for one in fields(BranchScheme):
        theirs, ours = getattr(stored, one.name), getattr(scheme, one.name)
        if theirs != ours:
            raise CheckpointError(
                f"{folder} was trained with {one.name} {theirs}, but here it is {ours}; give --{one.name} {theirs}."
            )
