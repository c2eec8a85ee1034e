"""Drawing tokens so that a row's draws depend on its own number only, not on the batch around it."""

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from fivefold.data.random_bits import Purpose, random_bits, random_keys
from fivefold.models.decoding import DecodingSettings


class SeededSampling(LogitsProcessor):
    """Adds Gumbel noise to the log-probabilities, so that the likeliest token is one drawn from them.

    With it `generate()` runs greedily (`do_sample=False`) and samples all the same, without any global random state.

    Source: Maddison, Tarlow and Minka 2014, A* Sampling (the Gumbel-max trick).

    Args:
        decoding: temperature, top_k, top_p and seed.
        numbers: [B] the rows' numbers; equal ones draw alike.
        draw: of several draws for the same row, which one.
        step: the first token's place in its text.
    """

    def __init__(self, decoding: DecodingSettings, numbers: list[int], draw: int = 0, step: int = 0) -> None:
        self._seed, self._numbers, self._draw, self._step = decoding.seed, np.array(numbers), draw, step
        self._warpers: list[LogitsProcessor] = []
        if decoding.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(decoding.temperature))
        if decoding.top_k:
            self._warpers.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1:
            self._warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [B, V] whose maximum is the drawn token."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)  # type: ignore[assignment, arg-type]
        keys = random_keys(self._seed, Purpose.SAMPLED_TOKEN, self._numbers, self._draw, self._step)
        self._step += 1
        # 53 random bits and a half, so that neither logarithm is infinite.
        uniform = ((random_bits(keys, scores.shape[-1]) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        noise = torch.from_numpy(-np.log(-np.log(uniform)))
        return scores + noise.to(scores.device, scores.dtype)
