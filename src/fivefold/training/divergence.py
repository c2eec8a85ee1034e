"""How far a policy has moved from its reference, measured on what the policy itself says."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LogitsProcessorList

from fivefold.data.loader import tensors
from fivefold.data.preference_pairs import PreferenceSource, TokenPairs
from fivefold.models.decoding import DecodingSettings
from fivefold.models.seeded_sampling import SeededSampling
from fivefold.models.settings import Family
from fivefold.objectives.answer_logps import answer_logps
from fivefold.training.distributed import Processes

ANSWERS_TO_A_PROMPT = 2
"""Sampled, so that they form pairs, for which the prompt is read once."""


class Sampling(NamedTuple):
    """Which answers are sampled."""

    prompts: list[NDArray[np.int32]]
    """Tokens, an end mark included if the model reads one."""
    max_new_tokens: int
    end_ids: list[int]
    """Each ends an answer."""
    pad_id: int
    seed: int


@torch.no_grad()
def kl_per_token(
    policy: nn.Module,
    open_reference: Callable[[], nn.Module],
    family: Family,
    sampling: Sampling,
    step: int,
    processes: Processes,
) -> float:
    """KL(policy || reference) in nats a token: the mean of log p - log p_ref over the policy's own samples.

    Samples are drawn from the whole distribution, at temperature 1, or the mean would be of something else; they follow
    from the seed, the step and the prompt's number. Being a mean over samples, it may be a little below 0 while the two
    are alike.

    Args:
        policy: on this process's device, not wrapped, dropout off.
        open_reference: the reference; it is let go of afterwards.
        sampling: prompts of all processes; each takes its share.
    """
    numbers = list(range(processes.rank, len(sampling.prompts), processes.world_size))
    mine = [sampling.prompts[number] for number in numbers]
    difference = num_tokens = 0.0
    if mine:
        answers = _sampled(policy, family, sampling._replace(prompts=mine), numbers, step)
        pairs = TokenPairs(mine, answers[::ANSWERS_TO_A_PROMPT], answers[1::ANSWERS_TO_A_PROMPT])
        source = PreferenceSource(pairs, family, pad_id=sampling.pad_id, seed=0, shuffle=False)
        batch = {
            name: tensor.to(processes.device) for name, tensor in tensors(source.batch(np.arange(len(pairs)))).items()
        }
        reference: Any = open_reference()
        reference = reference.to(processes.device).eval()
        difference = float((answer_logps(policy, batch) - answer_logps(reference, batch)).double().sum())
        num_tokens = float(pairs.num_tokens.sum())
    total, count = processes.sum(difference, num_tokens)
    return total / max(1.0, count)


def _sampled(policy: Any, family: Family, sampling: Sampling, numbers: list[int], draw: int) -> list[NDArray[np.int32]]:
    """Answers with their end marks, those to one prompt in a row; what is drawn follows from the numbers."""
    ids, mask = _left_padded(sampling.prompts, sampling.pad_id)
    decoding = DecodingSettings(sampling.max_new_tokens, do_sample=True, seed=sampling.seed)
    answer_numbers = [
        ANSWERS_TO_A_PROMPT * number + place for number in numbers for place in range(ANSWERS_TO_A_PROMPT)
    ]
    device = next(policy.parameters()).device
    tokens: Tensor = policy.generate(
        input_ids=ids.repeat_interleave(ANSWERS_TO_A_PROMPT, 0).to(device),
        attention_mask=mask.repeat_interleave(ANSWERS_TO_A_PROMPT, 0).to(device),
        logits_processor=LogitsProcessorList([SeededSampling(decoding, answer_numbers, draw)]),
        do_sample=False,  # the processor draws
        # What a model's own generation settings may say would change the distribution.
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        suppress_tokens=None,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=sampling.end_ids,
        pad_token_id=sampling.pad_id,
    )
    # A T5 begins with its start token, a decoder with the prompt.
    written = tokens[:, 1 if family == "t5" else ids.shape[1] :].cpu().numpy()
    return [_up_to_end(row, sampling.end_ids) for row in written]


def _left_padded(prompts: list[NDArray[np.int32]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids [B, S] and their mask; padding stands in front, so that a decoder goes on right behind each prompt."""
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), pad_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


def _up_to_end(tokens: NDArray[np.int64], end_ids: list[int]) -> NDArray[np.int32]:
    ends = np.flatnonzero(np.isin(tokens, end_ids))
    return tokens[: ends[0] + 1 if len(ends) else len(tokens)].astype(np.int32)
