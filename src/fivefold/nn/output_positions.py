"""The output layer at some positions only: the rest of a [B, T, V] array of logits is never made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def output_only_at(output_layer: nn.Module, places_N: Tensor) -> Iterator[None]:
    """Inside, the model's logits are [N, V], those of N positions in that order.

    A hook, because transformers' decoders take the same positions for all rows at best, and because the call still goes
    through the model's own `forward`, which is what several processes and adapters have wrapped.

    Args:
        output_layer: `model.get_output_embeddings()`.
        places_N: in the flattened [B * T]; the same one may come several times.
    """

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states_BTD, *rest = inputs
        return (states_BTD.flatten(0, 1)[places_N], *rest)

    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def places_of(is_chosen_BT: Tensor) -> Tensor:
    """[N] places in the flattened [B * T] where it is true."""
    return is_chosen_BT.flatten().nonzero().squeeze(1)
