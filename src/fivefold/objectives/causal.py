"""Cross-entropy of tokens given those before them: what decoders learn."""

from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from fivefold.errors import ModelError
from fivefold.nn.losses import IGNORE_INDEX, cross_entropy_sum
from fivefold.nn.output_positions import output_only_at, places_of
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
        # Without a mask: no token sees the padding, which stands behind it, and attention takes its fastest kernel.
        # Where several examples share a row, transformers tells them apart by positions that begin anew.
        arguments = {"position_ids": positions_within(batch["segments"])} if "segments" in batch else {}
        is_learned = labels != IGNORE_INDEX
        # A compiled model would be compiled anew for every number of positions, and given up after a few.
        is_compiled = getattr(bare, "_compiled_call_impl", None) is not None
        is_sparse = not is_compiled and int(is_learned.sum()) < _SPARSE * labels.numel()
        with output_only_at(bare.get_output_embeddings(), places_of(is_learned)) if is_sparse else nullcontext():
            logits = model(input_ids=batch["input_ids"], use_cache=False, **arguments).logits
        if is_sparse:
            labels = labels[is_learned]
        return LossTerms(*cross_entropy_sum(logits, labels, **self._terms))


def positions_within(segments_BS: Tensor) -> Tensor:
    """The place of each token in its example, [B, S] from 0.

    Args:
        segments_BS: the example of each token, counted from 1 along the row, 0 for padding.
    """
    places_S = torch.arange(segments_BS.shape[1], device=segments_BS.device)
    begins_BS = torch.ones_like(segments_BS, dtype=torch.bool)
    begins_BS[:, 1:] = segments_BS[:, 1:] != segments_BS[:, :-1]
    return places_S - torch.where(begins_BS, places_S, 0).cummax(dim=1).values


@torch.no_grad()
def check_packing(model: nn.Module) -> None:
    """Refuse a decoder that reads an example otherwise when another one stands before it in the row.

    Such are those that carry a state along the row, or that make their masks themselves.

    Raises:
        ModelError: it does.
    """
    decoder: Any = model
    device = next(model.parameters()).device
    ids = torch.tensor([[5, 6, 7, 8, 9, 6, 7]], device=device)
    segments = torch.tensor([[1, 1, 1, 2, 2, 2, 2]], device=device)
    was_training = model.training
    decoder.eval()
    together = decoder(input_ids=ids, position_ids=positions_within(segments), use_cache=False).logits[:, 3:]
    alone = decoder(input_ids=ids[:, 3:], use_cache=False).logits
    decoder.train(was_training)
    if not torch.allclose(together, alone, rtol=1e-2, atol=1e-2 * float(alone.abs().max())):  # wide, for half precision
        raise ModelError(
            f"{type(model).__name__} reads a conversation otherwise when another one stands before it in the row; "
            "leave --packing out."
        )


def _next_labels(batch: Batch) -> Tensor:
    """What each position predicts; the labels are shifted, not the logits, which are V times as large."""
    labels = batch["labels"].roll(-1, dims=-1)
    labels[:, -1] = IGNORE_INDEX
    if "segments" in batch:  # the last token of an example does not predict the first one of the next
        segments = batch["segments"]
        labels[:, :-1].masked_fill_(segments[:, 1:] != segments[:, :-1], IGNORE_INDEX)
    return labels
