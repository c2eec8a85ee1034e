"""What a training step takes, found out before it is made: bytes by what they are for, and operations."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fivefold.nn.hollow import hollow_copy
from fivefold.nn.quantised import stored_bytes
from fivefold.objectives.objective import Batch, Objective
from fivefold.training.optimizers import state_elements
from fivefold.training.settings import LoopSettings, OptimizerSettings

# torch counts the attention kernels of GPUs; the CPU's makes the same products.
_ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


@dataclass(frozen=True)
class StepCost:
    """Of one optimizer step of one process."""

    weights: int
    """Bytes of parameters and buffers."""
    gradients: int
    """Bytes."""
    optimizer: int
    """Bytes of its state."""
    tokens: int
    """That the model reads and writes."""
    activations: int | None = None
    """Bytes that a micro-batch keeps for its backward pass, weights cast to another type among them; None where the
    model's code cannot do without numbers."""
    flops: int | None = None
    """Of the matrix products, a product and a sum counted as two, forward and backward, with those that are made again
    to save memory; none of the optimizer's. None as above."""

    @property
    def memory(self) -> int:
        """Bytes, as if all of it were there at once, which it is when gradients are added up over micro-batches."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)


def step_cost(
    model: nn.Module,
    objective: Objective,
    full_rows: Callable[[int], Batch],
    optimizer: OptimizerSettings,
    loop: LoopSettings,
    *,
    micro_batch_size: int,
    accumulation_steps: int,
) -> StepCost:
    """Make a step by the model's own code on tensors without numbers; see what it keeps, and count its products.

    One row goes through the model and back, and two go through it: with every further row, bytes and operations grow by
    the same. The kernels are the CPU's, which keep about what a GPU's keep.

    Args:
        model: on any device, "meta" too; it stays as it is.
        full_rows: from a number of rows to the micro-batch of that many that takes the most.
        optimizer: whose state is meant.
        loop: says which type products have.
        micro_batch_size: rows at once.
        accumulation_steps: micro-batches of a step.

    Cost: about a second for four blocks, whatever their width.
    """
    hollow = hollow_copy(model, getattr(torch, loop.dtype)).train()
    trained = [parameter for parameter in hollow.parameters() if parameter.requires_grad]
    row, samples = full_rows(1), micro_batch_size * accumulation_steps
    cost = StepCost(
        weights=stored_bytes(model),
        gradients=sum(parameter.nbytes for parameter in trained),
        optimizer=state_elements(hollow, optimizer) * max(parameter.element_size() for parameter in trained),
        tokens=objective.count_tokens(row).total * samples,
    )
    try:
        with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
            one_row, loss = _kept(hollow, objective, row, loop)
            loss.backward()
        a_row = _kept(hollow, objective, full_rows(2), loop)[0] - one_row if micro_batch_size > 1 else 0
    except Exception:  # other people's decoders may do anything with the numbers that are not there
        return cost
    activations = one_row + (micro_batch_size - 1) * a_row
    return replace(cost, activations=activations, flops=counter.get_total_flops() * samples)


def _kept(model: nn.Module, objective: Objective, batch: Batch, loop: LoopSettings) -> tuple[int, Tensor]:
    """Bytes that autograd keeps for the backward pass besides the parameters, and the loss."""
    of_parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in of_parameters:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    dtype = getattr(torch, loop.dtype)
    is_mixed = dtype != torch.float32 and not loop.pure_bf16
    saved = torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor)
    with saved, torch.autocast("cpu", dtype, enabled=is_mixed):
        loss = objective(model, batch).loss_sum
    return sum(kept.values()), loss
