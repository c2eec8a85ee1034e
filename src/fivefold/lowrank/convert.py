"""A built model's linear layers to products of two thin matrices, and back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fivefold.errors import ModelError
from fivefold.lowrank.initialise import initialise_factors
from fivefold.lowrank.replace import empty_factors, factor_pairs, replace_modules
from fivefold.lowrank.store import refuse_dense_form
from fivefold.lowrank.targets import Scope, find_targets, linear_layers, name_patterns
from fivefold.nn.linear import PLAIN_LINEAR
from fivefold.nn.low_rank import LowRankLinear


@dataclass(frozen=True)
class Report:
    """What a conversion did; `str()` of it is for people."""

    replaced: Mapping[str, tuple[int, int, int]]
    """Factored layers: name to (out, in, rank)."""
    left_dense: Sequence[str]
    """Linear layers that stay as they were, the output layer included."""
    capped: Mapping[str, int]
    """Layers whose rank is their smaller side, to the larger rank that was asked for."""
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        ranks = sorted({rank for _, _, rank in self.replaced.values()})
        frac = self.parameters_after / self.parameters_before
        lines = [
            f"{len(self.replaced)} linear layers are products of rank {', '.join(map(str, ranks))}",
            f"{self.parameters_before:,} parameters became {self.parameters_after:,} ({frac:.0%}), "
            f"{self.bytes_before / 2**20:,.1f} MiB became {self.bytes_after / 2**20:,.1f} MiB",
        ]
        if self.left_dense:
            more = f" and {len(self.left_dense) - 3} more" if len(self.left_dense) > 3 else ""
            lines.append(f"left dense: {', '.join(self.left_dense[:3])}{more}")
        if self.capped:
            name, asked = next(iter(self.capped.items()))
            lines.append(
                f"rank capped at the smaller side of {len(self.capped)} layers, such as {name}: "
                f"{self.replaced[name][2]} instead of {asked}"
            )
        return "\n".join(lines)


@torch.no_grad()
def convert(
    model: PreTrainedModel,
    *,
    scope: Scope,
    attn_rank: int,
    mlp_rank: int,
    init: str,
    attn_targets: Sequence[str] = (),
    mlp_targets: Sequence[str] = (),
    seed: int = 0,
) -> Report:
    """Replace linear layers by `LowRankLinear`s, in place; embeddings, norms and the output layer stay.

    `model.config.low_rank` then holds {"ranks": {name: rank}, "init": ..., "targets": {kind: patterns}}, and
    `model.save_pretrained` writes the folder that `load_factored` reads, which other programs refuse to open.

    Args:
        model: dense; on the meta device only the shapes change.
        scope: attention and feed-forward layers, or one of the two.
        attn_rank: of attention projections, capped at each matrix's smaller side.
        mlp_rank: of feed-forward layers, likewise.
        init: as `initialise_factors` has them; auto takes the configuration's initializer_range, and where it has none,
            as T5's, the variance of each dense layer.
        attn_targets: `fnmatch` patterns of full module names, for models whose layers are not known by name.
        mlp_targets: likewise.
        seed: with a layer's place in the row, all that its random numbers depend on.

    Raises:
        ModelError: factored already, nothing matches, or an init that cannot be. The model is unchanged then.
    """
    if factor_pairs(model):
        raise ModelError(f"{type(model).__name__} is low rank already; change its rank, or merge it first.")
    kinds = find_targets(model, scope, attn_targets, mlp_targets)
    linear = linear_layers(model)
    dense = {name: linear[name] for name in kinds}
    asked = {name: attn_rank if kind == "attn" else mlp_rank for name, kind in kinds.items()}
    ranks = {name: min(asked[name], *layer.weight.shape) for name, layer in dense.items()}
    factored = empty_factors(dense, ranks)
    initializer_range = getattr(model.config, "initializer_range", None)
    for index, (name, layer) in enumerate(factored.items()):
        if layer.left.weight.is_meta:
            continue
        try:
            initialise_factors(
                layer, dense[name], init, initializer_range=initializer_range, generator=seeded_generator(seed, index)
            )
        except ModelError as error:
            raise ModelError(f"{name} cannot become low rank: {error}") from None
    before = count_parameters(model)
    replace_modules(model, {dense[name]: layer for name, layer in factored.items()})
    patterns = name_patterns(model, attn_targets, mlp_targets)
    model.config.low_rank = {"ranks": ranks, "init": init, "targets": patterns}
    refuse_dense_form(model)
    return build_report(model, before, asked)


@torch.no_grad()
def merge(model: PreTrainedModel) -> None:
    """Replace every `LowRankLinear` by the `nn.Linear` of its product, in place, and forget `config.low_rank`.

    Raises:
        ModelError: there is none, or adapters sit on a factor.
    """
    pairs = factor_pairs(model)
    if not pairs:
        raise ModelError(f"{type(model).__name__} is dense already: it has no low-rank layers to merge.")
    replacements: dict[nn.Module, nn.Module] = {}
    merged: dict[tuple[int, int], nn.Parameter] = {}  # once for layers that share their factors
    for name, layer in pairs:
        left, right = plain_factors(name, layer)
        with torch.device("meta"):
            dense = nn.Linear(layer.in_features, layer.out_features, bias=False)
        wide = torch.promote_types(left.dtype, torch.float32)
        product = (left.to(wide) @ right.to(wide)).to(left.dtype)
        own = nn.Parameter(product, requires_grad=left.requires_grad)
        dense.weight = merged.setdefault((id(left), id(right)), own)
        dense.bias = layer.left.bias
        replacements[layer] = dense.train(layer.training)
    replace_modules(model, replacements)
    model.__dict__.pop("save_pretrained", None)
    model.config.__dict__.pop("low_rank", None)


def plain_factors(name: str, layer: LowRankLinear) -> tuple[Tensor, Tensor]:
    """B [out, rank] and A [rank, in].

    Raises:
        ModelError: something else sits in a factor's place, such as a LoRA adapter, which the two would leave out.
    """
    for part in (layer.left, layer.right):
        if type(part) not in PLAIN_LINEAR:
            raise ModelError(f"A factor of {name} is a {type(part).__name__}: merge or remove such adapters first.")
    return layer.left.weight, layer.right.weight


def seeded_generator(seed: int, index: int) -> torch.Generator:
    """Random numbers for one layer that no other layer's depend on."""
    # torch reads 32 bits of a CPU seed, so the two are hashed, not added.
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, index)).generate_state(1)[0]))


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(parameters, their bytes), shared ones counted once."""
    parameters = list(model.parameters())
    return sum(map(torch.numel, parameters)), sum(parameter.nbytes for parameter in parameters)


def build_report(model: PreTrainedModel, before: tuple[int, int], asked: Mapping[str, int]) -> Report:
    """Describe a factored model.

    Args:
        before: `count_parameters` of it before the change.
        asked: the ranks that were asked for, per changed layer.
    """
    layers = dict(factor_pairs(model))
    output = model.get_output_embeddings()
    parameters, num_bytes = count_parameters(model)
    return Report(
        replaced={name: (layers[name].out_features, layers[name].in_features, layers[name].rank) for name in asked},
        left_dense=[*linear_layers(model), *(name for name, module in model.named_modules() if module is output)],
        capped={name: rank for name, rank in asked.items() if rank > layers[name].rank},
        parameters_before=before[0],
        parameters_after=parameters,
        bytes_before=before[1],
        bytes_after=num_bytes,
    )
