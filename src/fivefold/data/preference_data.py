"""Preferences to pairs of tokens: read, held out, written as the model reads them, and cut."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.held_out import is_held_out, text_digest
from fivefold.data.preference_pairs import TokenPairs
from fivefold.data.preferences import Preference, read_preferences
from fivefold.data.settings import DialogueSettings
from fivefold.errors import DataError
from fivefold.tokenizer.chat_format import ChatFormat, Family, Ids

log = logging.getLogger("fivefold")

_PREFERENCES_PER_BATCH = 1000
_NAMED = 5  # of the pairs that are left out; the others are counted


@dataclass(frozen=True)
class PreferenceData:
    """What to train on and what to measure on."""

    training: TokenPairs
    validation: TokenPairs | None
    """None where nothing is held out."""
    note: str
    """What had to be cut or left out."""


def build_preferences(corpus: CorpusSettings, data: DialogueSettings, chat: ChatFormat) -> PreferenceData:
    """Read preferences, hold some out, and encode them all.

    A preference is held out by a hash of its first message, so that all answers to a prompt share one fate, and so does
    a conversation of supervised fine-tuning that begins alike.

    Args:
        corpus: records of any shape that `data.preferences` knows, each with a rejected answer.
        data: how they become training data.
        chat: how they are written.

    Raises:
        ConfigError, DataError: settings or data that do not work.
    """
    held_out: list[Preference] = []
    digests: set[int] = set()
    if (apart := data.validation_corpus(corpus)) is not None:
        held_out = list(islice(read_preferences(apart), data.validation_documents))
        digests = {text_digest(_first(preference)) for preference in held_out}

    def training_preferences() -> Iterator[Preference]:
        for preference in read_preferences(corpus):
            if apart is not None:
                if text_digest(_first(preference)) not in digests:
                    yield preference
            elif not is_held_out(_first(preference), data.validation_frac):
                yield preference
            elif len(held_out) < data.validation_documents:
                held_out.append(preference)

    training = encode_preferences(training_preferences(), data, chat)
    if not len(training):
        raise DataError("There are no pairs to train on: everything is held out or left out, or the data are empty.")
    note = str(chat.cuts)
    if apart is None and data.validation_frac and not held_out:
        raise DataError(
            f"No pair was held out by validation_frac {data.validation_frac}; give a larger share, --validation_data, "
            "or 0 to hold none out."
        )
    validation = encode_preferences(held_out, data, chat) if held_out else None
    if validation is not None and not len(validation):
        raise DataError("Of the held-out pairs none is left to measure on; give more of them, or --validation_frac 0.")
    return PreferenceData(training, validation, note)


def encode_preferences(preferences: Iterable[Preference], data: DialogueSettings, chat: ChatFormat) -> TokenPairs:
    """Tokens of pairs; what cannot be used is left out, counted and named.

    That are prompts whose system message alone is too long, and pairs whose answers are the same once they are cut.
    """
    pairs = TokenPairs([], [], [])
    remaining, too_long, same = iter(preferences), [], []
    while batch := list(islice(remaining, _PREFERENCES_PER_BATCH)):
        cuts = replace(chat.cuts)
        try:
            encoded = list(zip(batch, *_encode(batch, data, chat), strict=True))
        except DataError:  # one of them has no room: which?
            chat.cuts, encoded = cuts, []
            for preference in batch:
                try:
                    encoded += zip([preference], *_encode([preference], data, chat), strict=True)
                except DataError as error:
                    too_long.append((preference, str(error)))
        for preference, prompt, chosen, rejected in encoded:
            if np.array_equal(chosen, rejected):
                same.append(preference)
                continue
            pairs.prompts.append(prompt)
            pairs.chosen.append(chosen)
            pairs.rejected.append(rejected)
    if too_long:
        _say_left_out([preference for preference, _ in too_long], f"for instance: {too_long[0][1]}")
    if same:
        _say_left_out(same, "their answers are the same once cut; give more --target_length")
    return pairs


def _say_left_out(preferences: Sequence[Preference], why: str) -> None:
    named = ", ".join(repr(_first(preference)[:40]) for preference in preferences[:_NAMED])
    more = f" and {len(preferences) - _NAMED:,} more" if len(preferences) > _NAMED else ""
    log.warning("%s pairs are left out (to %s%s); %s", f"{len(preferences):,}", named, more, why.rstrip("."))


def _encode(batch: Sequence[Preference], data: DialogueSettings, chat: ChatFormat) -> tuple[list[Ids], ...]:
    return _t5_pairs(batch, data, chat) if chat.family == "t5" else _decoder_pairs(batch, data, chat)


def row_capacity(data: DialogueSettings, family: Family) -> tuple[int, ...]:
    """Positions of a packed row, into which every pair fits."""
    if family == "t5":
        return (data.input_length, 2 * (data.target_length or data.input_length))
    return (2 * data.input_length,)


def _t5_pairs(batch: Sequence[Preference], data: DialogueSettings, chat: ChatFormat) -> tuple[list[Ids], ...]:
    most = data.target_length or data.input_length
    return (
        chat.encode_prompts([preference.prompt for preference in batch], data.input_length),
        chat.encode_answers([preference.chosen for preference in batch], most),
        chat.encode_answers([str(preference.rejected) for preference in batch], most),
    )


def _decoder_pairs(batch: Sequence[Preference], data: DialogueSettings, chat: ChatFormat) -> tuple[list[Ids], ...]:
    """A prompt and the longer of its answers within `input_length`; if both are long, each gets half."""
    length = data.input_length
    prompts = chat.encode_prompts([preference.prompt for preference in batch])
    sides = [
        chat.encode_answers([preference.chosen for preference in batch]),
        chat.encode_answers([str(preference.rejected) for preference in batch]),
    ]
    for place, preference in enumerate(batch):
        most = min(data.target_length or length, length - min(len(prompts[place]), length - length // 2))
        for ids, text in zip(sides, (preference.chosen, str(preference.rejected)), strict=True):
            if len(ids[place]) > most:
                ids[place] = chat.answer_ids(text, most)
        room = length - max(len(ids[place]) for ids in sides)
        if len(prompts[place]) > room:
            prompts[place] = chat.prompt_ids(preference.prompt, room)
    return prompts, *sides


def _first(preference: Preference) -> str:
    return next(message["content"] for message in preference.prompt if message["role"] == "user")
