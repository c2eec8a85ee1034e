"""Cross-entropy of every token given those before it: what decoders learn."""

from dataclasses import asdict

from torch import nn

from fivefold.nn.losses import IGNORE_INDEX, cross_entropy_sum
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.objectives.settings import LossSettings


class CausalObjective:
    """Sum over tokens of -log p(token | earlier tokens), with z-loss (off by default) and label smoothing.

    Batches hold `input_ids` [B, S], `labels` [B, S] (the same tokens, not shifted, -100 for padding) and, where rows
    are padded, which is on the right, `attention_mask`.
    """

    unit, others = "tokens", ()

    def __init__(self, settings: LossSettings) -> None:
        self._terms = asdict(settings.for_family("llama"))

    def count(self, batch: Batch) -> int:
        """Tokens with another one before them."""
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """Tokens that are read."""
        positions, mask = batch["input_ids"].numel(), batch.get("attention_mask")
        return TokenCounts(positions if mask is None else int(mask.sum()), positions)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model (bare or wrapped for several processes) on one micro-batch."""
        # Without the mask: no token sees the padding, which stands behind it, and attention takes its fastest kernel.
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits
        # The labels are shifted, not the logits: a slice of those would be copied, V times as large.
        labels = batch["labels"].roll(-1, dims=-1)
        labels[:, -1] = IGNORE_INDEX
        return LossTerms(*cross_entropy_sum(logits, labels, **self._terms))
