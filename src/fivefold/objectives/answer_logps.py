"""Log-probabilities of whole answers, several of them to one prompt that is read once.

Shapes: B rows, S source or row length, T target length, P pairs, A = 2 P answers, N tokens with a label, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor, nn

from fivefold.errors import ModelError
from fivefold.nn.losses import IGNORE_INDEX, token_logps
from fivefold.nn.output_positions import output_only_at, places_of
from fivefold.objectives.objective import Batch


def answer_logps(model: nn.Module, batch: Batch) -> Tensor:
    """Sum over each answer's tokens of log p(token | prompt, earlier tokens), [P, 2] in float32 or wider.

    Args:
        model: a T5 or a decoder, bare or wrapped for several processes.
        batch: as for `answer_logits`, with two answers to each prompt.
    """
    logits_NV, labels_N, answers_N = answer_logits(model, batch)
    logps_N = token_logps(logits_NV, labels_N, overwrite_logits=True)
    sums_A = logps_N.new_zeros(batch["num_tokens"].numel())
    return sums_A.index_add(0, answers_N - 1, logps_N).view(-1, 2)


def answer_logits(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [N, V] of each token of each answer, with that token [N] and the answer's number [N].

    Args:
        model: a T5 or a decoder, bare or wrapped for several processes.
        batch: from `data.answer_rows`. A T5's has `input_ids` [B, S], `segments` [B, S] (their prompts), `labels`
            [B, T], `answers` [B, T] and `memory_segments` [B, T] (their prompts); a decoder's T = S and `position_ids`
            [B, S] instead, its labels standing where they are predicted. Prompts and answers are numbered from 1
            through the batch; 0 means padding, and in a decoder's `answers` the prompt.
    """
    bare: Any = getattr(model, "module", model)
    labels, answers = batch["labels"], batch["answers"]
    positions = labels != IGNORE_INDEX
    if "position_ids" in batch:
        arguments: dict[str, Any] = {
            "attention_mask": visible_answers(batch["segments"], answers),
            "position_ids": batch["position_ids"],
            "use_cache": False,
        }
    else:
        arguments = {
            "decoder_input_ids": bare.prepare_decoder_input_ids_from_labels(labels, answers),
            "segments": batch["segments"],
            "decoder_segments": answers,
            "memory_segments": batch["memory_segments"],
        }
    with output_only_at(bare.get_output_embeddings(), places_of(positions)):
        logits_NV = model(input_ids=batch["input_ids"], **arguments).logits
    return logits_NV, labels[positions], answers[positions]


def visible_answers(segments_BS: Tensor, answers_BS: Tensor) -> Tensor:
    """What each position of a decoder's row sees, [B, 1, S, S] bool: its pair's prompt, its own answer, up to itself.

    Args: as in the batch of `answer_logits`.
    """
    same_pair = segments_BS[:, :, None] == segments_BS[:, None, :]
    readable = (answers_BS[:, None, :] == 0) | (answers_BS[:, :, None] == answers_BS[:, None, :])
    length = segments_BS.shape[1]
    is_past = torch.ones(length, length, dtype=torch.bool, device=segments_BS.device).tril()
    return (same_pair & readable & is_past)[:, None]


@torch.no_grad()
def check_answers_apart(decoder: nn.Module) -> None:
    """Refuse a decoder that reads two answers to one prompt otherwise than each by itself.

    Such are those that take no mask of their own for each pair of positions (state-space models, attention windows,
    some kernels), which no message would tell.

    Raises:
        ModelError: the log-probabilities differ.
    """
    model: Any = decoder
    device = next(model.parameters()).device
    prompt, answers = [5, 6, 7], ([8, 9, 10], [11, 12])
    apart = []
    for answer in answers:
        ids = torch.tensor([prompt + answer], device=device)
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
        apart.append(token_logps(logits, ids[0, len(prompt) :]).sum())
    batch = {
        "input_ids": [5, 6, 7, 8, 9, 7, 11],
        "labels": [IGNORE_INDEX, IGNORE_INDEX, 8, 9, 10, 11, 12],
        "segments": [1] * 7,
        "answers": [0, 0, 1, 1, 1, 2, 2],
        "position_ids": [0, 1, 2, 3, 4, 2, 3],
        "num_tokens": [3, 2],
    }
    rows = {name: torch.tensor([values], device=device) for name, values in batch.items()}
    try:
        together = answer_logps(model, rows)[0]
    except Exception:  # a mask of another shape than expected makes a model stumble over anything
        together = torch.full((2,), torch.nan, device=device)
    if not torch.allclose(together, torch.stack(apart), rtol=1e-2, atol=1e-2):  # a wide margin for half precision
        raise ModelError(
            f"{type(model).__name__} reads an answer otherwise when another one stands in the same row, so it cannot "
            "be trained on pairs: it needs attention that takes a mask [batch, 1, length, length]; try "
            'attn_implementation "sdpa" in its config.json.'
        )
