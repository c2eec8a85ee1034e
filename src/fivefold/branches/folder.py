"""The scheme by which a model's branches are told apart, beside its weights."""

import json
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from fivefold.branches.settings import BranchScheme
from fivefold.errors import CheckpointError

BRANCHES = "branches.json"


def save_with_scheme(model: Any, scheme: BranchScheme) -> None:
    """Let the model's `save_pretrained` write its scheme, too."""
    model.save_pretrained = partial(_save, model.save_pretrained, scheme)


def _save(save: Any, scheme: BranchScheme, folder: str) -> None:
    save(folder)
    (Path(folder) / BRANCHES).write_text(json.dumps(asdict(scheme), indent=2) + "\n", encoding="utf-8")


def stored_scheme(folder: str | Path) -> BranchScheme | None:
    """The scheme of a model or an adapter that was trained on branches; None for any other.

    Raises:
        CheckpointError: the file cannot be read.
    """
    file = Path(folder) / BRANCHES
    if not file.is_file():
        return None
    try:
        return BranchScheme(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); fetch the folder again.") from error


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
