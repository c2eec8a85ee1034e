"""Factored layers in the places of dense ones: their shapes and where they stand, not what is in them."""

from collections.abc import Mapping

import torch
from torch import nn

from fivefold.nn.low_rank import LowRankLinear


def factor_pairs(model: nn.Module) -> list[tuple[str, LowRankLinear]]:
    """The factored layers with their names, in the model's order, each once."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, LowRankLinear)]


def empty_factors(dense_layers: Mapping[str, nn.Linear], ranks: Mapping[str, int]) -> dict[str, LowRankLinear]:
    """A factored layer for each dense one, its factors still unwritten memory, its bias the dense layer's own.

    Device, dtype, requires_grad and mode are the dense layer's; layers that share a weight share both factors.

    Args:
        dense_layers: by name.
        ranks: for each of those names.
    """
    layers: dict[str, LowRankLinear] = {}
    first_of: dict[int, LowRankLinear] = {}
    for name, dense in dense_layers.items():
        weight = dense.weight
        with torch.device("meta"):  # without memory, and without drawing numbers that nobody asked for
            layer = LowRankLinear(dense.in_features, dense.out_features, ranks[name]).to(weight.dtype)
        layer = layer.to_empty(device=weight.device).requires_grad_(weight.requires_grad).train(dense.training)
        layer.left.bias = dense.bias
        first = first_of.setdefault(id(weight), layer)
        layer.left.weight, layer.right.weight = first.left.weight, first.right.weight
        layers[name] = layer
    return layers


def replace_modules(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put other modules in the places of some, in every place that each of them has."""
    places = [(name, old) for name, old in model.named_modules(remove_duplicate=False) if old in replacements]
    for name, old in places:
        model.set_submodule(name, replacements[old])
