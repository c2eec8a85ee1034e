"""The output layer at some positions only: the rest of a [B, T, V] array of logits is never made."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def output_only_at(output_layer: nn.Module, positions_BT: Tensor) -> Iterator[None]:
    """Inside, the model's logits are [N, V], those of the N positions, row by row.

    A hook, because transformers' decoders take the same positions for all rows at best, and because the call still goes
    through the model's own `forward`, which is what several processes and adapters have wrapped.

    Args:
        output_layer: `model.get_output_embeddings()`.
        positions_BT: [B, T] bool, N of them true.
    """
    rows_N = positions_BT.flatten().nonzero().squeeze(1)  # once, and here, for states may be hollow

    def select(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        states_BTD, *rest = inputs
        return (states_BTD.flatten(0, 1)[rows_N], *rest)

    handle = output_layer.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
