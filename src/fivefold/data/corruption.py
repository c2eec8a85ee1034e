"""From windows of text to inputs and targets: the self-supervised objectives as objects with one method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fivefold.data.denoisers import UL2, Denoiser, denoiser_numbers
from fivefold.data.prefix import prefix_split
from fivefold.data.rows import Rows, with_first
from fivefold.data.settings import MAX_LENGTH, ObjectiveSettings
from fivefold.data.spans import check_sentinels, corrupted_lengths, noise_counts, raw_lengths, span_corruption
from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.special_tokens import sentinel_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Corruption(ABC):
    """Decides how much raw text a sample takes and turns it into an input and a target.

    There may be several kinds of sample, as in UL2's mixture. Samples come in blocks that hold one of each kind.
    """

    window_lengths: NDArray[np.int64]
    """[kinds], the raw tokens that a sample of each kind takes."""

    def kinds(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The kind of each sample, [B]."""
        return np.zeros_like(sample_ids)

    @abstractmethod
    def corrupted(self, rows: Rows, sample_ids: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included, of B rows of raw tokens."""


class SpanCorruption(Corruption):
    """Span corruption by one denoiser (T5) or by several in turn (UL2)."""

    def __init__(
        self,
        denoisers: Sequence[Denoiser],
        *,
        input_length: int,
        target_length: int | None,
        seed: int,
        sentinels: NDArray,
        eos_id: int,
        mode_ids: NDArray | None = None,
    ):
        """Work out the window of every denoiser and check that the sentinels are enough.

        Args:
            denoisers: one or more.
            input_length: tokens an input may have, mode token and end mark included.
            target_length: tokens a target may have, end mark included; None for what the input brings with it.
            seed: the run's seed.
            sentinels: [S] sentinel ids, `<extra_id_0>` first.
            eos_id: the end mark.
            mode_ids: [len(denoisers)] token put before each input, or None for no such token.

        Raises:
            ConfigError: a length that is too short.
            DataError: more spans than sentinels.
        """
        self._densities = np.array([denoiser.noise_density for denoiser in denoisers])
        self._span_lengths = np.array([denoiser.mean_span_length for denoiser in denoisers])
        self._seed, self._sentinels, self._eos_id, self._mode_ids = seed, sentinels, eos_id, mode_ids
        text_length = input_length if mode_ids is None else input_length - 1
        lengths = [
            raw_lengths(text_length, denoiser.noise_density, denoiser.mean_span_length, target_length)[0]
            for denoiser in denoisers
        ]
        self.window_lengths = np.array(lengths, np.int64)
        if self.window_lengths.max() > MAX_LENGTH:
            raise ConfigError(
                f"input_length {input_length} takes {self.window_lengths.max():,} tokens of text for a sample, "
                f"more than {MAX_LENGTH:,}; give a shorter one."
            )
        _, num_spans = noise_counts(self.window_lengths, self._densities, self._span_lengths)
        check_sentinels(int(num_spans.max()), sentinels, f"An input of {input_length} tokens")

    def kinds(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The denoiser of each sample, [B]."""
        return denoiser_numbers(sample_ids, len(self.window_lengths), self._seed)

    def lengths(self, raw: NDArray[np.int64], kinds: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens of inputs and targets, [B, 2], that these denoisers, [B], make of rows of so many raw ones, [B]."""
        inputs, targets = corrupted_lengths(raw, self._densities[kinds], self._span_lengths[kinds])
        return np.stack([inputs + (self._mode_ids is not None), targets], 1)

    def corrupted(
        self, rows: Rows, sample_ids: NDArray[np.int64], kinds: NDArray[np.int64] | None = None
    ) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included, of B rows of raw tokens; `kinds` [B] takes the place of their own."""
        kinds = self.kinds(sample_ids) if kinds is None else kinds
        inputs, targets = span_corruption(
            rows,
            self._densities[kinds],
            self._span_lengths[kinds],
            seed=self._seed,
            sample_ids=sample_ids,
            sentinels=self._sentinels,
            eos_id=self._eos_id,
        )
        return (inputs if self._mode_ids is None else with_first(inputs, self._mode_ids[kinds])), targets


class PrefixSplit(Corruption):
    """Prefix language modelling with a uniformly random border."""

    def __init__(self, *, input_length: int, target_length: int | None, seed: int, eos_id: int):
        """Take as much text as fits wherever the border falls."""
        self.window_lengths = np.array([min(input_length, target_length or input_length)], np.int64)
        self._seed, self._eos_id = seed, eos_id

    def corrupted(self, rows: Rows, sample_ids: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """Inputs and targets, end marks included, of B rows of raw tokens."""
        return prefix_split(rows, seed=self._seed, sample_ids=sample_ids, eos_id=self._eos_id)


class WholeText(Corruption):
    """Hides nothing: causal language modelling, where a decoder reads and predicts the same tokens."""

    def __init__(self, *, input_length: int):
        """Take as much text as a sample may have."""
        self.window_lengths = np.array([input_length], np.int64)

    def corrupted(self, rows: Rows, sample_ids: NDArray[np.int64]) -> tuple[Rows, Rows]:
        """The rows themselves, as inputs and as targets; a model shifts the targets by one itself."""
        return rows, rows


def build_corruption(objective: ObjectiveSettings, tokenizer: "PreTrainedTokenizerBase", seed: int) -> Corruption:
    """The self-supervised objective that the settings describe.

    Args:
        objective: span (which None means), ul2, prefix or causal.
        tokenizer: brings the end mark, the sentinels and the mode tokens.
        seed: the run's seed.

    Raises:
        ConfigError: lengths that are too short.
        DataError: a tokenizer without an end mark, without enough sentinels, or without the mode tokens asked for.
    """
    input_length, target_length = objective.sample_length, objective.target_length
    if objective.objective == "causal":
        return WholeText(input_length=input_length)
    eos_id = special_id(tokenizer, "eos_token")
    if objective.objective == "prefix":
        return PrefixSplit(input_length=input_length, target_length=target_length, seed=seed, eos_id=eos_id)
    denoisers, mode_ids = UL2, None
    if objective.objective in ("span", None):
        denoisers = (Denoiser(objective.noise_density, objective.mean_span_length),)
        needed = raw_lengths(input_length, objective.noise_density, objective.mean_span_length)[1]
        if target_length is not None and target_length < needed:
            raise ConfigError(
                f"target_length {target_length} is too short: span corruption of input_length {input_length} makes "
                f"targets of {needed}; give at least that, or leave target_length out."
            )
    else:
        target_length = target_length or input_length
        mode_ids = _mode_ids(tokenizer, [str(denoiser.mode_token) for denoiser in UL2], objective.mode_tokens)
    return SpanCorruption(
        denoisers,
        input_length=input_length,
        target_length=target_length,
        seed=seed,
        sentinels=sentinel_ids(tokenizer),
        eos_id=eos_id,
        mode_ids=mode_ids,
    )


def longest_target(objective: ObjectiveSettings) -> int:
    """Tokens that the target of a sample may have, end mark included; of packed documents, about those of a row.

    Raises:
        ConfigError: an input too short for any span.
    """
    if objective.target_length is not None:
        return objective.target_length
    if objective.objective in ("span", None):
        return raw_lengths(objective.sample_length, objective.noise_density, objective.mean_span_length)[1]
    return objective.sample_length


def special_id(tokenizer: "PreTrainedTokenizerBase", name: str) -> int:
    """The id of a special token that a tokenizer must have, such as `eos_token`.

    Raises:
        DataError: it has none.
    """
    token_id = getattr(tokenizer, f"{name}_id")
    if token_id is None:
        raise DataError(f"The tokenizer has no {name}, which training needs: train one with `fivefold tokenizer`.")
    return token_id


def padding_id(tokenizer: "PreTrainedTokenizerBase", objective: ObjectiveSettings) -> int:
    """What fills a row up: the pad token, or for a decoder without one, whose loss leaves padding out, the end mark."""
    if objective.objective == "causal" and tokenizer.pad_token_id is None:
        return special_id(tokenizer, "eos_token")
    return special_id(tokenizer, "pad_token")


def _mode_ids(tokenizer: "PreTrainedTokenizerBase", tokens: list[str], wanted: bool | None) -> NDArray | None:
    vocab = tokenizer.get_vocab()
    missing = sorted({token for token in tokens if token not in vocab})
    if wanted and missing:
        raise DataError(
            f"The tokenizer has no {', '.join(missing)}, which --mode_tokens asks for: train one with these among its "
            "special tokens, or give --no_mode_tokens."
        )
    return None if missing or wanted is False else np.array([vocab[token] for token in tokens])
