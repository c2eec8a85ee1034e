"""Which linear layers of a model are attention projections and which feed-forward layers, told by their names."""

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fivefold.errors import ModelError
from fivefold.nn.linear import PLAIN_LINEAR
from fivefold.nn.low_rank import LowRankLinear
from fivefold.t5.config import T5_TYPES

Scope = Literal["all", "attn", "mlp"]
Kind = Literal["attn", "mlp"]
Patterns = Mapping[Kind, Sequence[str]]

_WORDS: dict[Kind, str] = {"attn": "attention", "mlp": "feed-forward"}
_T5: Patterns = {
    "attn": ("*.SelfAttention.[qkvo]", "*.EncDecAttention.[qkvo]"),
    "mlp": ("*.DenseReluDense.wi", "*.DenseReluDense.wi_[01]", "*.DenseReluDense.wo"),
}
_LLAMA: Patterns = {
    "attn": ("*.self_attn.[qkvo]_proj",),
    "mlp": ("*.mlp.gate_proj", "*.mlp.up_proj", "*.mlp.down_proj"),
}
# By `config.model_type`. Only families all of whose projections go by these names: half a match would be silent.
FAMILIES: dict[str, Patterns] = {
    **dict.fromkeys(T5_TYPES, _T5),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA),
}


def name_patterns(
    model: PreTrainedModel, attn_targets: Sequence[str] = (), mlp_targets: Sequence[str] = ()
) -> dict[Kind, list[str]]:
    """The name patterns of a model's attention and feed-forward layers: those given, else those of its family."""
    family = FAMILIES.get(model.config.model_type, {})
    return {"attn": list(attn_targets or family.get("attn", ())), "mlp": list(mlp_targets or family.get("mlp", ()))}


def kind_of(name: str, patterns: Patterns) -> Kind | None:
    """Whether a layer is an attention projection or a feed-forward layer; None if no pattern says so."""
    return next((kind for kind in patterns if any(fnmatchcase(name, pattern) for pattern in patterns[kind])), None)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Every plain linear layer by name, but for the output layer and the two inside each factored layer."""
    others = {model.get_output_embeddings()}
    for module in model.modules():
        if isinstance(module, LowRankLinear):
            others.update(module.children())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and type(module) in PLAIN_LINEAR and module not in others
    }


def find_targets(
    model: PreTrainedModel, scope: Scope, attn_targets: Sequence[str] = (), mlp_targets: Sequence[str] = ()
) -> dict[str, Kind]:
    """The linear layers in a scope, in the model's order, each once and under its first name.

    A layer whose weight is also used elsewhere, such as by an embedding, is not among them.

    Args:
        model: dense.
        scope: attention and feed-forward layers, or one of the two.
        attn_targets: `fnmatch` patterns of full module names, in place of those the family is known by.
        mlp_targets: likewise.

    Raises:
        ModelError: a part of the scope or a given pattern matches nothing, or one layer is matched as both kinds.
    """
    linear = linear_layers(model)
    given: Patterns = {"attn": attn_targets, "mlp": mlp_targets}
    if unused := next((kind for kind in given if given[kind] and scope not in ("all", kind)), None):
        raise ModelError(
            f"--loro_{unused}_targets are given, but the scope is {scope}: drop them or choose the scope all."
        )
    kinds: dict[str, Kind] = {}
    for kind, patterns in name_patterns(model, attn_targets, mlp_targets).items():
        if scope not in ("all", kind):
            continue
        found = {pattern: [name for name in linear if fnmatchcase(name, pattern)] for pattern in patterns}
        # A family's patterns cover its plain and its gated form, so that one of them may match nothing.
        unmatched = next((pattern for pattern in given[kind] if not found[pattern]), None)
        if unmatched is not None or not any(found.values()):
            raise ModelError(_nothing_found(model, kind, unmatched, linear))
        for name in itertools.chain(*found.values()):
            if kinds.setdefault(name, kind) != kind:
                raise ModelError(f"{name} matches as an attention and as a feed-forward layer: narrow the patterns.")
    own = {linear[name] for name in kinds}
    used_elsewhere = {
        parameter for module in model.modules() if module not in own for parameter in module.parameters(recurse=False)
    }
    return {name: kinds[name] for name in linear if name in kinds and linear[name].weight not in used_elsewhere}


def _nothing_found(model: PreTrainedModel, kind: Kind, pattern: str | None, linear: Mapping[str, nn.Linear]) -> str:
    # One name for all blocks: a sentence with a thousand names helps nobody.
    general = list(dict.fromkeys(re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name) for name in linear))
    has_conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    and_conv1d = " (its Conv1D layers are not supported)" if has_conv1d else ""
    if pattern is not None:
        near = difflib.get_close_matches(pattern, general, n=5, cutoff=0.4) or general[:16]
        there_are = f"{', '.join(near) or 'none'}{and_conv1d}"
        return f"{pattern!r} matches no linear layer of {type(model).__name__}; there are {there_are}."
    return (
        f"fivefold does not know the {_WORDS[kind]} layers of {type(model).__name__}, whose linear layers are "
        f"{', '.join(general[:16]) or 'none'}{and_conv1d}: name them with --loro_{kind}_targets or choose another "
        "scope."
    )
