"""What a denoiser hides, UL2's mixture of seven, and which of them gets sample n."""

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from fivefold.data.random_bits import Purpose, random_bits, random_keys


@dataclass(frozen=True)
class Denoiser:
    """One way to corrupt text: how much is hidden, in spans of which length, announced by which token."""

    noise_density: float
    """Share of the tokens hidden, in (0, 1)."""
    mean_span_length: float
    """Average length of a hidden span, at least 1; infinity hides one span, the end of the text."""
    mode_token: str | None = None
    """A token before the input that tells the model which kind of denoising this is."""


UL2 = (
    Denoiser(0.15, 3.0, "[NLU]"),
    Denoiser(0.15, 8.0, "[NLU]"),
    Denoiser(0.25, inf, "[S2S]"),
    Denoiser(0.5, 3.0, "[NLG]"),
    Denoiser(0.5, 8.0, "[NLG]"),
    Denoiser(0.15, 64.0, "[NLG]"),
    Denoiser(0.5, 64.0, "[NLG]"),
)
"""R (regular), S (sequential: a prefix and its last quarter) and X (extreme) denoisers, in equal parts.

Source: Tay et al., UL2: Unifying Language Learning Paradigms (2022), table 1; mode tokens as in the released model.
"""


def denoiser_numbers(sample_ids: NDArray[np.int64], num_denoisers: int, seed: int) -> NDArray[np.int64]:
    """Deal the denoisers out so that every block of `num_denoisers` samples has each of them once, in a random order.

    So proportions are exact, and the k-th sample of a denoiser is the one in block k.

    Args:
        sample_ids: [B] sample numbers.
        num_denoisers: how many there are.
        seed: the run's seed.

    Returns:
        [B] numbers in [0, num_denoisers).
    """
    blocks, places = np.divmod(sample_ids, num_denoisers)
    orders = random_bits(random_keys(seed, Purpose.DENOISER_CYCLE, blocks), num_denoisers).argsort(axis=1)
    return orders[np.arange(len(sample_ids)), places]
