"""Cross-entropy of tokens given those before them: what decoders learn."""

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.nn.losses import IGNORE_INDEX, cross_entropy_sum
from fivefold.nn.output_positions import output_only_at
from fivefold.objectives.objective import Batch, LossTerms, TokenCounts
from fivefold.objectives.settings import LossSettings

_SPARSE = 0.9
"""Share of the positions that predict something from which on all of them go through the output layer: to pick some
costs a copy of their states."""


class CausalObjective:
    """Sum over labelled tokens of -log p(token | earlier tokens), with z-loss (off by default) and label smoothing.

    Batches hold `input_ids` [B, S], `labels` [B, S] (the same tokens, not shifted, -100 for padding and for what is
    read only) and, where rows are padded, which is on the right, `attention_mask`; or `segments` [B, S] where several
    examples share a row (0 for padding). Each example of a packed row is computed as if it stood alone.
    """

    unit, others = "tokens", ()

    def __init__(self, settings: LossSettings) -> None:
        self._terms = asdict(settings.for_family("llama"))

    def count(self, batch: Batch) -> int:
        """Labelled tokens with another one before them."""
        return int((_next_labels(batch) != IGNORE_INDEX).sum())

    def count_tokens(self, batch: Batch) -> TokenCounts:
        """Tokens that are read."""
        positions = batch["input_ids"].numel()
        mask = batch["segments"] != 0 if "segments" in batch else batch.get("attention_mask")
        return TokenCounts(positions if mask is None else int(mask.sum()), positions)

    def __call__(self, model: nn.Module, batch: Batch) -> LossTerms:
        """Run the model (bare or wrapped for several processes) on one micro-batch."""
        bare: Any = getattr(model, "module", model)
        labels = _next_labels(batch)
        # Without a mask where there are no segments: no token sees the padding, which stands behind it, and attention
        # takes its fastest kernel.
        arguments = packed_arguments(batch["segments"]) if "segments" in batch else {}
        is_learned = labels != IGNORE_INDEX
        is_sparse = int(is_learned.sum()) < _SPARSE * labels.numel()
        with output_only_at(bare.get_output_embeddings(), is_learned) if is_sparse else nullcontext():
            logits = model(input_ids=batch["input_ids"], use_cache=False, **arguments).logits
        if is_sparse:
            labels = labels[is_learned]
        return LossTerms(*cross_entropy_sum(logits, labels, **self._terms))


def packed_arguments(segments_BS: Tensor) -> dict[str, Tensor]:
    """What tells a decoder of transformers which tokens of a row see each other, and at which places they stand.

    Padding is a segment of its own: a position that sees nothing would make attention divide by zero.

    Args:
        segments_BS: the example of each token, counted from 1 along the row, 0 for padding.

    Returns:
        `attention_mask` [B, 1, S, S], true where a token sees another, and `position_ids` [B, S], from 0 each.
    """
    length = segments_BS.shape[1]
    places_S = torch.arange(length, device=segments_BS.device)
    begins_BS = torch.ones_like(segments_BS, dtype=torch.bool)
    begins_BS[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
    firsts_BS = torch.where(begins_BS, places_S, 0).cummax(dim=1).values
    sees_BSS = (segments_BS[:, :, None] == segments_BS[:, None, :]) & (places_S[:, None] >= places_S)
    return {"attention_mask": sees_BSS[:, None], "position_ids": places_S - firsts_BS}


def _next_labels(batch: Batch) -> Tensor:
    """What each position predicts; the labels are shifted, not the logits, which are V times as large."""
    labels = batch["labels"].roll(-1, dims=-1)
    labels[:, -1] = IGNORE_INDEX
    if "segments" in batch:  # the last token of an example does not predict the first one of the next
        segments = batch["segments"]
        labels[:, :-1].masked_fill_(segments[:, 1:] != segments[:, :-1], IGNORE_INDEX)
    return labels
