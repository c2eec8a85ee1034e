"""Linear layers whose weights bitsandbytes holds in 4 or 8 bits."""

from typing import Any

from torch import Tensor, nn


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is such a layer; bitsandbytes need not be installed to ask."""
    return isinstance(module, nn.Linear) and type(module).__module__.startswith("bitsandbytes.")


def stored_bytes(model: nn.Module) -> int:
    """Of a model's parameters and buffers, and of the scales of its quantised weights."""
    held = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if is_quantised(module):
            weight: Any = module.weight
            state = getattr(weight, "quant_state", None)  # of 4 bits; 8 bits have a scale a row
            held += (
                [weight.SCB] if state is None else [one for one in state.as_dict().values() if isinstance(one, Tensor)]
            )
    return sum(tensor.nbytes for tensor in held)
