"""How a global batch is divided into steps, processes and micro-batches."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fivefold.data.settings import BatchSettings
from fivefold.errors import ConfigError


@dataclass(frozen=True)
class BatchPlan:
    """The division of every step's global batch."""

    micro_batch_size: int
    """Rows that one process puts through the model at once."""
    accumulation_steps: int
    """Micro-batches whose gradients one process adds up."""
    world_size: int
    """Processes."""

    @property
    def global_batch_size(self) -> int:
        """Rows of one optimizer step, over all processes."""
        return self.micro_batch_size * self.accumulation_steps * self.world_size

    def sample_ids(self, step: int, rank: int) -> NDArray[np.int64]:
        """[accumulation_steps, micro_batch_size] sample numbers of one process in one step.

        The numbers of a step, s * G to (s + 1) * G - 1 for a global batch of G, are dealt out one micro-batch to
        each process in
        turn: a process sees them rising, as a stream needs, and all processes together see each once.
        """
        numbers = np.arange(step * self.global_batch_size, (step + 1) * self.global_batch_size)
        return numbers.reshape(self.accumulation_steps, self.world_size, self.micro_batch_size)[:, rank]


def plan_batches(settings: BatchSettings, world_size: int) -> BatchPlan:
    """Work out the accumulation steps.

    Raises:
        ConfigError: a total that does not divide, or that contradicts the accumulation steps.
    """
    micro, total, steps = settings.batch_size, settings.total_batch_size, settings.accumulation_steps
    at_once = micro * world_size
    if total is not None and total % at_once:
        lower = total // at_once * at_once
        nearest = f"{lower} or {lower + at_once}" if lower else f"{at_once}"
        raise ConfigError(
            f"total_batch_size {total} does not divide into micro-batches of {micro} on {world_size} process(es); "
            f"give {nearest}, or another batch_size."
        )
    if total is not None and steps is not None and total != at_once * steps:
        raise ConfigError(
            f"batch_size {micro} x accumulation_steps {steps} x {world_size} process(es) is {at_once * steps}, but "
            f"total_batch_size is {total}; leave one of them out."
        )
    return BatchPlan(micro, steps or (total or at_once) // at_once, world_size)
