"""How likely a model finds given answers: each prompt is read once, whatever the number of its answers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from fivefold.data.answer_rows import answer_rows
from fivefold.data.loader import tensors
from fivefold.nn.losses import token_logps
from fivefold.objectives.answer_logps import answer_logits
from fivefold.t5.model import T5Model


class Likelihood(NamedTuple):
    """Of one answer."""

    logp: float
    """Sum over its tokens of log p(token | prompt, earlier tokens)."""
    is_greedy: bool
    """Whether each token is the likeliest one: whether it is what the model would write."""


@torch.no_grad()
def answer_likelihoods(
    model: PreTrainedModel, prompts: Sequence[NDArray], answers: Sequence[Sequence[NDArray]], *, pad_id: int
) -> list[list[Likelihood]]:
    """The likelihood of every answer to each prompt of a batch.

    Args:
        model: a T5 or a decoder that `check_answers_apart` lets pass, in evaluation mode.
        prompts: tokens of each, at least 1.
        answers: to each prompt, tokens of each, at least 1; end marks count like any other token.
        pad_id: the padding token.
    """
    family = "t5" if isinstance(model, T5Model) else "llama"
    rows = answer_rows(prompts, answers, [[number] for number in range(len(prompts))], family, pad_id=pad_id)
    batch = {name: array.to(model.device) for name, array in tensors(rows).items()}
    logits_NV, labels_N, answers_N = answer_logits(model, batch)
    num_answers = sum(map(len, answers))
    is_likeliest = (logits_NV.argmax(-1) == labels_N).long()
    missed = torch.zeros(num_answers, dtype=torch.long, device=model.device).index_add(
        0, answers_N - 1, 1 - is_likeliest
    )
    logps_N = token_logps(logits_NV, labels_N).double()
    sums = logps_N.new_zeros(num_answers).index_add(0, answers_N - 1, logps_N)
    flat = iter([Likelihood(logp, misses == 0) for logp, misses in zip(sums.tolist(), missed.tolist(), strict=True)])
    return [[next(flat) for _ in each] for each in answers]


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Which items go together in batches of some size: the longest first, so that little is padding.

    A batch that is too large for the machine then fails at once, and time left is not underestimated.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
