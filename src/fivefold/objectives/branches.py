"""Cross-entropy of main texts and of the branches that go on from them, each as if it stood alone behind main."""

from dataclasses import asdict
from typing import Any

from torch import nn

from fivefold.branches.model import branch_arguments
from fivefold.branches.settings import BranchScheme
from fivefold.nn.losses import cross_entropy_sum
from fivefold.nn.output_positions import output_only_at
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.objectives.settings import LossSettings


class BranchObjective:
    """Sum over the learned tokens of -log p(token | main and what is earlier in its branch).

    Batches are those of `data.branch_layout.branch_batch`, models those that `prepare_for_branches` has changed.
    """

    unit, others = "tokens", ()

    def __init__(self, settings: LossSettings, scheme: BranchScheme) -> None:
        self._terms, self._scheme = asdict(settings.for_family("llama")), scheme

    def count(self, batch: Batch) -> int:
        """Learned tokens."""
        return batch["targets"].numel()

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """Tokens that are read, main's once."""
        return TokenCounts(int((batch["branches"] >= 0).sum()), batch["branches"].numel())

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model (bare or wrapped) on one micro-batch."""
        bare: Any = getattr(model, "module", model)
        arguments = branch_arguments(model, batch["branches"], batch["times"], self._scheme)
        # Main's last state predicts the first token of every branch, and so goes through the output layer for each.
        with output_only_at(bare.get_output_embeddings(), batch["sources"]):
            logits = model(input_ids=batch["input_ids"], use_cache=False, **arguments).logits
        return LossTerms(*cross_entropy_sum(logits, batch["targets"], **self._terms))
