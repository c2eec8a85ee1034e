"""Conversations to examples: what is read before each answer, and the answer, which alone is learned."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from fivefold.corpus.settings import CorpusSettings
from fivefold.data.build import EVALUATION_SEED
from fivefold.data.conversations import MESSAGES, TEXT, open_conversations
from fivefold.data.examples import PackedSource
from fivefold.data.held_out import is_held_out, text_digest
from fivefold.data.pairs import EncodedSource
from fivefold.data.rows import IGNORED_LABEL
from fivefold.data.settings import DialogueSettings
from fivefold.data.source import Source
from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.chat_format import ChatFormat, Ids, Message

log = logging.getLogger("fivefold")

Example = tuple[NDArray, NDArray]
"""Ids to read, and labels: a T5's answer, or as many as ids, -100 where nothing is learned."""

_CONVERSATIONS_PER_BATCH = 1000
_SECONDS_BETWEEN_MESSAGES = 10.0


@dataclass(frozen=True)
class Dialogues:
    """What to train on and what to measure on."""

    training: Source
    validation: Source | None
    """None where nothing is held out."""
    held_out: list[list[Message]]
    """The conversations in `validation`."""


def build_dialogues(corpus: CorpusSettings, data: DialogueSettings, chat: ChatFormat, *, seed: int) -> Dialogues:
    """Read conversations, hold some out, and encode them all.

    A conversation is held out by a hash of its first message, so that equal ones share one fate.

    Args:
        corpus: records of any shape that `data.conversations` knows.
        data: how they become training data.
        chat: how they are written; `chat.cuts` then says what had to be cut.
        seed: the run's seed.

    Raises:
        ConfigError, DataError: settings or data that do not work.
    """
    held_out: list[list[Message]] = []
    digests: set[int] = set()
    if (apart := data.validation_corpus(corpus)) is not None:
        held_out = list(islice(_conversations(apart, chat), data.validation_documents))
        digests = {text_digest(_first(messages)) for messages in held_out}

    def training_conversations() -> Iterator[list[Message]]:
        for messages in _conversations(corpus, chat):
            if apart is not None:
                if text_digest(_first(messages)) not in digests:
                    yield messages
            elif not is_held_out(_first(messages), data.validation_frac):
                yield messages
            elif len(held_out) < data.validation_documents:
                held_out.append(messages)

    pad_id = padding_id(chat)
    training = _encoded(training_conversations(), data, chat, pad_id, seed, shuffle=True)
    if apart is None and data.validation_frac and not held_out:
        raise DataError(
            f"No conversation was held out by validation_frac {data.validation_frac}; give a larger share, "
            "--validation_data, or 0 to hold none out."
        )
    # Padded: runs with and without packing are measured on the same examples.
    validation = _encoded(held_out, data, chat, pad_id, EVALUATION_SEED, shuffle=False) if held_out else None
    if not data.packing:
        return Dialogues(training, validation, held_out)
    length = data.input_length
    row = (length, (data.target_length or length) if chat.family == "t5" else length)
    return Dialogues(PackedSource(training, row), validation, held_out)


def encode_dialogues(conversations: Sequence[list[Message]], data: DialogueSettings, chat: ChatFormat) -> list[Example]:
    """Examples of conversations: a T5's one for each answer, a decoder's one for as many as fit into a row."""
    return _t5_examples(conversations, data, chat) if chat.family == "t5" else _rows(conversations, data, chat)


def padding_id(chat: ChatFormat) -> int:
    """What rows are padded with: no model reads it, so where there is no padding token the end mark serves.

    Raises:
        ConfigError: a T5 without padding token, which begins its answers with it.
    """
    pad_id = chat.tokenizer.pad_token_id
    if pad_id is None and chat.family == "t5":
        raise ConfigError("The tokenizer has no padding token (pad_token), which a T5 needs; give another --tokenizer.")
    return chat.tokenizer.eos_token_id if pad_id is None else pad_id


def _conversations(corpus: CorpusSettings, chat: ChatFormat) -> Iterator[list[Message]]:
    for record in open_conversations(corpus):
        if _is_text(record[MESSAGES]) and chat.family == "t5":
            raise DataError(
                f"--data {' '.join(corpus.data)} holds plain text, in which a T5 finds no answer to write; give "
                "conversations, or learn the text with `fivefold pretrain`."
            )
        yield record[MESSAGES]


def _first(messages: list[Message]) -> str:
    return next(message["content"] for message in messages if message["role"] in ("user", TEXT))


def _encoded(
    conversations: Iterable[list[Message]],
    data: DialogueSettings,
    chat: ChatFormat,
    pad_id: int,
    seed: int,
    *,
    shuffle: bool,
) -> EncodedSource:
    examples: list[Example] = []
    remaining, count = iter(conversations), 0
    began = told = monotonic()
    while batch := list(islice(remaining, _CONVERSATIONS_PER_BATCH)):
        examples += encode_dialogues(batch, data, chat)
        count += len(batch)
        if monotonic() > told + _SECONDS_BETWEEN_MESSAGES:
            told = monotonic()
            log.info("read %s conversations, %s a second", f"{count:,}", f"{count / (told - began):,.0f}")
    if not examples:
        raise DataError("There are no conversations to train on: everything is held out, or the data are empty.")
    inputs, labels = zip(*examples, strict=True)
    num_learned = sum(int((row[chat.family != "t5" :] != IGNORED_LABEL).sum()) for row in labels)
    if not num_learned:
        raise DataError("No row has a token to learn: not one holds a part of an answer; look at data and template.")
    num_tokens = sum(map(len, inputs)) + (num_learned if chat.family == "t5" else 0)
    note = (
        f"{len(examples):,} {'answers' if chat.family == 't5' else 'rows'} of {count:,} conversations, "
        f"{num_tokens:,} tokens, {num_learned:,} of them learned; {chat.cuts}"
    )
    return EncodedSource(inputs, labels, pad_id=pad_id, seed=seed, shuffle=shuffle, note=note)


def _t5_examples(conversations: Iterable[list[Message]], data: DialogueSettings, chat: ChatFormat) -> list[Example]:
    places = [
        (messages, place)
        for messages in conversations
        for place, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    prompts = chat.encode_prompts([messages[:place] for messages, place in places], data.input_length)
    answers = chat.encode_answers(
        [messages[place]["content"] for messages, place in places], data.target_length or data.input_length
    )
    return list(zip(prompts, answers, strict=True))


def _rows(conversations: Sequence[list[Message]], data: DialogueSettings, chat: ChatFormat) -> list[Example]:
    """A decoder's rows: as many exchanges of a conversation as fit, the others in rows of their own."""
    turns = [chat.turns(messages) for messages in conversations]
    texts = [turn for conversation in turns for turn in conversation or []]
    befores = iter(chat.encode_template_texts([before for before, _ in texts]))
    answers = iter(chat.encode_answers([answer for _, answer in texts]))
    plain_texts = iter(chat.encode_texts([messages[0]["content"] for messages in conversations if _is_text(messages)]))
    end_id = chat.answer_ids("")[-1]
    rows: list[Example] = []
    for messages, conversation in zip(conversations, turns, strict=True):
        if _is_text(messages):
            rows += _pieces(next(plain_texts), data.input_length)
            continue
        row: list[tuple[Ids, Ids]] = []
        room, is_first = data.input_length, True
        for place, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, answer = (next(befores), next(answers)) if conversation is not None else (None, None)
            if before is not None and answer is not None and (row or is_first):
                size = len(before) + len(answer)
                if size <= room and len(answer) <= (data.target_length or size):
                    row.append((before, answer))
                    room, is_first = room - size, False
                    continue
            if row:
                rows.append(_row(row))
            history = messages[:place] if conversation is None else _alone(messages, place)
            row, is_first = [_exchange(history, message["content"], data, chat)], False
            # Nothing goes on behind an answer that was cut, for no end mark stands there.
            is_whole = conversation is not None and row[0][1][-1] == end_id
            room = data.input_length - sum(map(len, row[0])) if is_whole else 0
        rows.append(_row(row))
    return rows


def _is_text(messages: list[Message]) -> bool:
    return messages[0]["role"] == TEXT


def _pieces(ids: Ids, length: int) -> list[Example]:
    """A text in rows; each begins with the last token of the one before, so that every token is predicted once."""
    pieces = [ids[start : start + length] for start in range(0, len(ids) - 1, length - 1)]
    return [(piece, piece) for piece in pieces]


def _alone(messages: list[Message], place: int) -> list[Message]:
    """The question to an answer, behind the system's message if there is one."""
    return [*(messages[:1] if messages[0]["role"] == "system" else []), messages[place - 1]]


def _exchange(prompt: list[Message], answer: str, data: DialogueSettings, chat: ChatFormat) -> tuple[Ids, Ids]:
    """A prompt and its answer within a row's length; if both are long, each gets half."""
    length = data.input_length
    prompt_length = min(len(chat.prompt_ids(prompt)), length - length // 2)
    most = min(data.target_length or length, length - prompt_length)
    ids = chat.answer_ids(answer, most)
    return chat.prompt_ids(prompt, length - len(ids)), ids


def _row(exchanges: list[tuple[Ids, Ids]]) -> Example:
    ids = np.concatenate([part for exchange in exchanges for part in exchange])
    labels = [part for before, answer in exchanges for part in (np.full(len(before), IGNORED_LABEL, np.int32), answer)]
    return ids, np.concatenate(labels)
