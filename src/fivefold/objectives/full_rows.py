"""The fullest micro-batches there can be, a token at every position, to find out what a step takes at most.

Shapes: B rows, S inputs, T targets. Every function gives a batch as its objective reads it.
"""

import torch

from fivefold.nn.losses import IGNORE_INDEX
from fivefold.objectives.objective import Batch


def full_pairs(rows: int, input_length: int, target_length: int, *, packing: bool, may_pad: bool = True) -> Batch:
    """Inputs [B, S] and targets [B, T] of `Seq2SeqObjective`.

    Args:
        packing: whether rows hold several examples, and so bring their segments.
        may_pad: whether rows differ in length, and so bring an attention mask.
    """
    inputs, targets = (torch.ones(rows, length, dtype=torch.long) for length in (input_length, target_length))
    batch = {"input_ids": inputs, "labels": targets}
    if packing:
        return batch | {"segments": inputs, "decoder_segments": targets}
    return batch | {"attention_mask": inputs} if may_pad else batch


def full_windows(rows: int, length: int, *, packing: bool = False) -> Batch:
    """Tokens [B, S] of `CausalObjective`, which learns every one of them."""
    ids = torch.ones(rows, length, dtype=torch.long)
    return {"input_ids": ids, "labels": ids} | ({"segments": ids} if packing else {})


def full_preferences(rows: int, capacity: tuple[int, ...], *, needs_reference: bool) -> Batch:
    """Rows of `PreferenceObjective`, each a prompt with two answers of one length.

    Args:
        capacity: positions of a row, as `data.preference_data.row_capacity` counts them: (S, T) of a T5, (S,) of a
            decoder, all but one of which belong to answers.
        needs_reference: whether the batch says what a reference said.
    """
    read, length = int(len(capacity) == 1), capacity[-1]  # of a decoder's row, its first token is only read
    pairs = torch.arange(1, rows + 1)[:, None]
    places = torch.arange(length) - read
    chosen = (length - read) // 2
    inputs, labels = (torch.ones(rows, length, dtype=torch.long) for length in (capacity[0], length))
    answers = 2 * pairs - (places < chosen).long()
    batch = {"input_ids": inputs, "segments": inputs * pairs, "labels": labels, "answers": answers}
    if read:
        answers[:, 0], labels[:, 0] = 0, IGNORE_INDEX
        batch["position_ids"] = (1 + torch.where(places < chosen, places, places - chosen)).repeat(rows, 1)
    else:
        batch["memory_segments"] = labels * pairs
    batch["num_tokens"] = torch.tensor([[chosen, length - read - chosen]]).repeat(rows, 1)
    return batch | ({"reference_logps": torch.zeros(rows, 2)} if needs_reference else {})


def full_branches(rows: int, length: int, num_branches: int, max_tokens: int) -> Batch:
    """Samples of `BranchObjective`: a main text as long as a branch, and as many branches as go together.

    Args:
        length: of a branch.
        max_tokens: of a sample; 0 for as many as there are.
    """
    total = (num_branches + 1) * length
    ids = torch.ones(rows, min(total, max_tokens) if max_tokens else total, dtype=torch.long)
    places = torch.arange(ids.shape[1])
    times = torch.where(places < length, places, length + places % length)
    sources = torch.arange(ids.numel())
    return {
        "input_ids": ids,
        "branches": (places // length).expand_as(ids).contiguous(),
        "times": times.expand_as(ids).contiguous(),
        "sources": sources,
        "targets": ids.flatten(),
    }
