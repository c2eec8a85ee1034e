"""Span corruption as T5 does it: hide random spans, ask for them back, each under its sentinel.

Source: Raffel et al., Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer (2019),
    section 3.1.4;
the lengths follow the published preprocessing (random_spans_noise_mask, random_spans_helper).
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fivefold.data.random_bits import Purpose, random_bits, random_keys
from fivefold.data.rows import Rows, marked_stretches
from fivefold.errors import ConfigError, DataError


def noise_counts(
    lengths: ArrayLike, noise_density: float | NDArray, mean_span_length: float | NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How many tokens of each row are hidden, and in how many spans.

    Differs: T5 does not clip the spans by the tokens that stay, which a mean span length near 1 at a high density
        needs.

    Args:
        lengths: [B] tokens in each row; a row shorter than 2 counts as 2.
        noise_density: [B] or a scalar in (0, 1).
        mean_span_length: [B] or a scalar >= 1; infinity hides one span.

    Returns:
        [B] hidden tokens, at least one hidden and one kept, and [B] spans; both rounded half to even.
    """
    lengths = np.maximum(np.atleast_1d(lengths), 2)
    num_noise = np.clip(np.rint(lengths * noise_density).astype(np.int64), 1, lengths - 1)
    num_spans = np.rint(num_noise / mean_span_length).astype(np.int64)
    return num_noise, np.clip(num_spans, 1, np.minimum(num_noise, lengths - num_noise))


def corrupted_lengths(
    lengths: ArrayLike, noise_density: float | NDArray, mean_span_length: float | NDArray
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """How long inputs and targets come out, [B] each, end marks included; arguments as `noise_counts`'."""
    lengths = np.atleast_1d(lengths)
    num_noise, num_spans = noise_counts(lengths, noise_density, mean_span_length)
    num_noise = np.where(lengths > 1, num_noise, 0)  # a row of one token keeps it
    return lengths - num_noise + num_spans + 1, num_noise + num_spans + 1


def raw_lengths(
    input_length: int, noise_density: float, mean_span_length: float, target_length: int | None = None
) -> tuple[int, int]:
    """The raw tokens that fill an input once corrupted, and the length of their target; both with their end mark.

    Args:
        input_length: tokens that the corrupted input may have.
        noise_density: share of the raw tokens hidden, in (0, 1).
        mean_span_length: average length of a hidden span, at least 1.
        target_length: tokens that the target may have. Without it the target has what it needs, except that at a
            density of one half it may not be longer than the input: T5 drops that one token too.

    Returns:
        (raw tokens, target length), for instance (568, 114) for (512, 0.15, 3.0).

    Raises:
        ConfigError: a limit too short for two tokens of text.
    """
    if target_length is None and noise_density == 0.5:
        target_length = input_length

    def corrupted(raw: int) -> tuple[int, int]:
        (inputs,), (targets,) = corrupted_lengths(raw, noise_density, mean_span_length)
        return int(inputs), int(targets)

    def fits(raw: int) -> bool:
        inputs, targets = corrupted(raw)
        return inputs <= input_length and (target_length is None or targets <= target_length)

    if not fits(2):
        limits = f"input_length {input_length}" + (f" and target_length {target_length}" if target_length else "")
        raise ConfigError(
            f"{limits} cannot hold corrupted text: an input and a target need at least 3 tokens each "
            "(one of text, a sentinel, the end mark); give longer ones."
        )
    # Both lengths never fall as the raw length grows, so bisection finds the last one that fits.
    low, high = 2, 4
    while fits(high):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low, corrupted(low)[1]


def check_sentinels(needed: int, sentinels: NDArray, what: str) -> None:
    """Refuse a corruption with more spans than the tokenizer has sentinels.

    Raises:
        DataError: because T5 code that counts down from the last id would then use ordinary words as sentinels in
            silence.
    """
    if needed > len(sentinels):
        raise DataError(
            f"{what} hides {needed} spans and needs as many sentinels <extra_id_N>, but the tokenizer has "
            f"{len(sentinels)}: train one with at least {needed}, or make the input shorter or the spans longer."
        )


def random_compositions(
    totals: NDArray[np.int64], num_parts: NDArray[np.int64], keys: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Cut each total into positive parts, every way of cutting being equally likely.

    A composition of n into k parts is a choice of k - 1 cuts among n - 1 places; the places with the k - 1 smallest
    random words are such a choice.

    Args:
        totals: [B], at least 1 and at most 65,536.
        num_parts: [B], from 1 to the total.
        keys: [B] uint64, one stream of random words each.

    Returns:
        [B, K] with K the largest number of parts; a row with fewer parts ends in zeros.
    """
    places = np.arange(totals.max() - 1, dtype=np.uint64)
    # The place rides in the low 16 bits of its word: sorting the words sorts the places along, and no two words are
    # equal.
    words = (random_bits(keys, len(places)) << np.uint64(16)) | places
    words[places >= (totals[:, None] - 1).astype(np.uint64)] = np.uint64(2**64 - 1)
    words.sort(axis=1)
    num_cuts = num_parts.max() - 1
    cuts = (words[:, :num_cuts] & np.uint64(0xFFFF)).astype(np.int64) + 1
    cuts = np.where(np.arange(num_cuts) < num_parts[:, None] - 1, cuts, totals[:, None])
    cuts.sort(axis=1)
    return np.diff(cuts, axis=1, prepend=0, append=totals[:, None])


def span_borders(
    lengths: NDArray[np.int64],
    noise_density: float | NDArray,
    mean_span_length: float | NDArray,
    *,
    seed: int,
    sample_ids: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose which tokens are hidden: stretches of text and of noise in turn, text first and noise last.

    Args:
        lengths: [B] tokens in each row, at most 65,536. A row of one token keeps it and hides an empty span.
        noise_density: [B] or a scalar in (0, 1).
        mean_span_length: [B] or a scalar >= 1.
        seed: the run's seed.
        sample_ids: [B], the number of each sample in the run; with the seed it decides everything.

    Returns:
        borders: [B, 2 K + 1] with K the largest number of spans, each row rising from 0 to its length: text from border
            0 to 1, noise from 1 to 2, text from 2 to 3 and so on; a row with fewer spans ends in empty stretches.
        num_spans: [B].
    """
    num_noise, num_spans = noise_counts(lengths, noise_density, mean_span_length)
    num_text = np.maximum(lengths, 2) - num_noise
    noise = random_compositions(num_noise, num_spans, random_keys(seed, Purpose.NOISE_LENGTHS, sample_ids))
    text = random_compositions(num_text, num_spans, random_keys(seed, Purpose.TEXT_LENGTHS, sample_ids))
    borders = np.zeros((len(lengths), 2 * text.shape[1] + 1), np.int64)
    np.cumsum(np.stack([text, noise], axis=2).reshape(len(lengths), -1), axis=1, out=borders[:, 1:])
    return np.minimum(borders, lengths[:, None]), num_spans


def span_corruption(
    rows: Rows,
    noise_density: float | NDArray,
    mean_span_length: float | NDArray,
    *,
    seed: int,
    sample_ids: NDArray[np.int64],
    sentinels: NDArray,
    eos_id: int,
) -> tuple[Rows, Rows]:
    """Corrupt rows of text into inputs with holes and targets that fill them.

    `text a b c d e` with `b` and `d e` hidden becomes the input `text a <0> c <1> </s>` and the target
    `<0> b <1> d e </s>`.

    Args:
        rows: B rows of tokens without end marks, each at most 65,536 long.
        noise_density: [B] or a scalar in (0, 1).
        mean_span_length: [B] or a scalar >= 1.
        seed: the run's seed.
        sample_ids: [B], the number of each sample in the run.
        sentinels: [S] sentinel ids, `<extra_id_0>` first.
        eos_id: the end mark.

    Returns:
        Inputs and targets, each B rows that end in `eos_id`.

    Raises:
        DataError: more spans than sentinels.
    """
    borders, num_spans = span_borders(rows.lengths, noise_density, mean_span_length, seed=seed, sample_ids=sample_ids)
    max_spans = borders.shape[1] // 2
    check_sentinels(max_spans, sentinels, f"Corrupting {int(rows.lengths.max())} tokens")
    # Both sides are stretches with a mark behind each, and the marks are the same: the sentinels, then the end mark.
    # The input's last stretch is empty, and so is the target's first.
    marks = np.where(np.arange(max_spans + 1) < num_spans[:, None], np.append(sentinels[:max_spans], eos_id), eos_id)
    starts, lengths = borders[:, :-1], np.diff(borders, axis=1)
    nothing = np.zeros((len(borders), 1), np.int64)
    inputs, targets = (
        marked_stretches(rows, np.concatenate(side_starts, 1), np.concatenate(side_lengths, 1), marks, num_spans + 1)
        for side_starts, side_lengths in (
            ((starts[:, 0::2], nothing), (lengths[:, 0::2], nothing)),
            ((nothing, starts[:, 1::2]), (nothing, lengths[:, 1::2])),
        )
    )
    return inputs, targets
