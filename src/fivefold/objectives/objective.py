"""What the training loop asks of an objective (contract 2: a loss sum and the count of its terms)."""

from typing import NamedTuple, Protocol

from torch import Tensor, nn

Batch = dict[str, Tensor]


class LossTerms(NamedTuple):
    """A loss as a sum over terms, so that the loop can divide by the count of all processes and micro-batches."""

    loss_sum: Tensor
    """Carries the gradient."""
    nll_sum: Tensor
    """The plain part, detached: what is logged and compared between runs."""


class Objective(Protocol):
    """A batch and a model to loss terms."""

    def count(self, batch: Batch) -> int:
        """Terms in the batch's sums; known before the forward pass."""
        ...

    def num_tokens(self, batch: Batch) -> int:
        """Tokens that the model reads and writes for this batch, padding left out."""
        ...

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model and sum the loss over the batch's terms."""
        ...
