"""What the training loop asks of an objective (contract 2: a loss sum and the count of its terms)."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


class LossTerms(NamedTuple):
    """A loss as a sum over terms, so that the loop can divide by the count of all processes and micro-batches."""

    loss_sum: Tensor
    """Carries the gradient."""
    nll_sum: Tensor
    """The plain part, detached: what is logged and compared between runs."""
    other_sums: Tensor = torch.zeros(0)
    """[len(objective.others)], what else is logged, each a sum over the same terms, detached."""


class TokenCounts(NamedTuple):
    """Tokens that a model reads and writes for a batch, and the positions of the rows that they stand in."""

    inputs: int
    """Padding left out."""
    input_positions: int
    """With padding."""
    targets: int = 0
    """None of its own in a decoder, whose targets are its inputs."""
    target_positions: int = 0

    @property
    def total(self) -> int:
        """Inputs and targets, padding left out."""
        return self.inputs + self.targets

    @property
    def nonpadding_fracs(self) -> dict[str, float]:
        """Share of the positions that hold tokens, of each side there is, by its name in the log."""
        fracs = {"input_nonpadding_frac": self.inputs / self.input_positions}
        if self.target_positions:
            fracs["target_nonpadding_frac"] = self.targets / self.target_positions
        return fracs


class Objective(Protocol):
    """A batch and a model to loss terms."""

    @property
    def unit(self) -> str:
        """What it counts, in the plural: tokens, or pairs."""
        ...

    @property
    def others(self) -> tuple[str, ...]:
        """Names in the log of what it measures besides the loss."""
        ...

    def count(self, batch: Batch) -> int:
        """Terms in the batch's sums; known before the forward pass."""
        ...

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """What the model reads and writes for this batch."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model and sum the loss over the batch's terms."""
        ...
