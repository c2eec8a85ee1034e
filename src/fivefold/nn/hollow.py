"""Tensors that have a shape, a type and a device but no numbers, to find out what a step takes without taking it."""

import copy
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fivefold.nn.quantised import is_quantised

Module = TypeVar("Module", bound=nn.Module)


def is_hollow(tensor: object) -> bool:
    """Whether a tensor has no numbers to look at, here or because torch.compile is reading the code."""
    return torch.compiler.is_compiling() or isinstance(tensor, FakeTensor)


def hollow_copy(model: Module, dtype: torch.dtype = torch.float32) -> Module:
    """The same model with hollow parameters and buffers on the CPU, which takes no memory worth mentioning.

    Not on the device "meta", which has no autocast. Where operations get hollow tensors among ordinary ones, the result
    is hollow; what is computed of ordinary ones alone, such as masks of token ids, has its numbers.

    Args:
        model: on any device, "meta" too. It stays as it is.
        dtype: of the plain layers that stand for quantised ones, which need numbers; that of the products, lest they be
            cast.
    """
    hollow: dict[int, Any] = {}
    with FakeTensorMode(allow_non_fake_inputs=True):
        for tensor in chain(model.parameters(), model.buffers()):
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            is_parameter = isinstance(tensor, nn.Parameter)
            hollow[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
        for layer in filter(is_quantised, model.modules()):
            shape: Any = layer
            plain = nn.Linear(shape.in_features, shape.out_features, shape.bias is not None, "cpu", dtype)
            hollow[id(layer)] = plain.requires_grad_(False)
    # Copying takes for done what its memo holds, so that whatever shared a tensor shares the hollow one.
    return copy.deepcopy(model, dict(hollow))
