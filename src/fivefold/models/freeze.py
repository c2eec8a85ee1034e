"""Parameters of a model that stay as they are, by name."""

import difflib
import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from fivefold.errors import ConfigError
from fivefold.lowrank.convert import factor_pairs

EMBEDDINGS = "embeddings"
log = logging.getLogger("fivefold")


def freeze(model: PreTrainedModel, patterns: Sequence[str]) -> list[str]:
    """Let parameters need no gradient: they get no optimizer state and no weight decay either.

    Args:
        model: changed in place.
        patterns: of parameters' names, or of parts that hold them; `embeddings` is the table of tokens.

    Returns:
        The names of what is frozen, a shared tensor once.

    Raises:
        ConfigError: a pattern that matches nothing, or one factor of a low-rank layer without the other.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen: set[int] = set()
    for pattern in patterns:
        matches = _matches(model, named, pattern)
        if not matches:
            raise ConfigError(f"--freeze {pattern} matches no parameter; {_nearest(pattern, list(named))}")
        frozen |= {id(parameter) for parameter in matches}
    for name, layer in factor_pairs(model):
        if (id(layer.left.weight) in frozen) != (id(layer.right.weight) in frozen):
            raise ConfigError(
                f"--freeze {' '.join(patterns)} leaves one factor of {name} free and not the other; freeze the layer."
            )
    names = [name for name, parameter in model.named_parameters() if id(parameter) in frozen]
    for name in names:
        named[name].requires_grad_(False)
    num_frozen = sum(named[name].numel() for name in names)
    total = sum(parameter.numel() for parameter in model.parameters())
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    shared = ", which is the output layer too" if _is_output(model, frozen) else ""
    log.info("frozen: %s of %s parameters (%s%s)", f"{num_frozen:,}", f"{total:,}", shown, shared)
    return names


def _matches(model: PreTrainedModel, named: dict[str, nn.Parameter], pattern: str) -> list[nn.Parameter]:
    if pattern == EMBEDDINGS:
        return list(model.get_input_embeddings().parameters())
    return [named[name] for name in named if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]


def _nearest(pattern: str, names: list[str]) -> str:
    parts = {".".join(name.split(".")[:length]) for name in names for length in range(1, name.count(".") + 2)}
    nearest = difflib.get_close_matches(pattern, [EMBEDDINGS, *sorted(parts)], n=3, cutoff=0.4)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(names[:3])} and so on."


def _is_output(model: PreTrainedModel, frozen: set[int]) -> bool:
    output, table = model.get_output_embeddings(), model.get_input_embeddings()
    return output is not None and output.weight is table.weight and id(output.weight) in frozen
