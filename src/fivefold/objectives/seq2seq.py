"""Cross-entropy of targets given inputs: span corruption, its relatives, and prompt to response."""

from dataclasses import asdict
from typing import Any

from torch import nn

from fivefold.nn.losses import IGNORE_INDEX, cross_entropy_sum
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.objectives.settings import LossSettings


class Seq2SeqObjective:
    """Sum over target tokens of -log p(token | input, earlier tokens), with z-loss and label smoothing.

    Batches hold `input_ids` [B, S], `labels` [B, T] (-100 for padding) and, where inputs are padded, `attention_mask`;
    or `segments` [B, S] and `decoder_segments` [B, T] where several examples share a row (0 for padding).
    """

    unit, others = "tokens", ()

    def __init__(self, settings: LossSettings) -> None:
        self._terms = asdict(settings.for_family("t5"))

    def count(self, batch: Batch) -> int:
        """Target tokens."""
        return int((batch["labels"] != IGNORE_INDEX).sum())

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """Input and target tokens."""
        positions = batch["input_ids"].numel()
        mask = batch["segments"] != 0 if "segments" in batch else batch.get("attention_mask")
        inputs = positions if mask is None else int(mask.sum())
        return TokenCounts(inputs, positions, self.count(batch), batch["labels"].numel())

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model (bare or wrapped for several processes) on one micro-batch."""
        labels, decoder_segments = batch["labels"], batch.get("decoder_segments")
        bare: Any = getattr(model, "module", model)
        logits = model(
            input_ids=batch["input_ids"],
            attention_mask=batch.get("attention_mask"),
            decoder_input_ids=bare.prepare_decoder_input_ids_from_labels(labels, decoder_segments),
            segments=batch.get("segments"),
            decoder_segments=decoder_segments,
        ).logits
        return LossTerms(*cross_entropy_sum(logits, labels, **self._terms, overwrite_logits=True))
