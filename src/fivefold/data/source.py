"""What the loader asks of training data: a batch for given sample numbers."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Source(ABC):
    """Samples by number: a run's n-th sample is the same whoever asks for it, in whatever batch."""

    samples_per_epoch: int | None
    """Samples in one pass over the data, or None where the end is not known."""

    @abstractmethod
    def describe(self) -> str:
        """What it holds, in half a line."""

    @abstractmethod
    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Make the batch of these samples.

        Args:
            sample_ids: [B] sample numbers, counted from 0 through all epochs.

        Returns:
            `input_ids` [B, Li], `labels` [B, Lt] padded with -100, `attention_mask` [B, Li] if an input is padded; or
            `segments` [B, Li] and `decoder_segments` [B, Lt] in its place where rows are packed.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a later run needs, besides the next sample number, to go on from here: nothing, except for streams."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, but was given {sorted(state)}")
