"""Records of the shapes in which people keep preferences, to a prompt with a good and a bad answer."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fivefold.corpus.bad_lines import BadRecord
from fivefold.corpus.files import Record
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.conversations import (
    ALPACA_FIELDS,
    ANSWERS,
    CONVERSATION_SHAPES,
    LISTS,
    MESSAGES,
    PROMPTS,
    alpaca_prompt,
    as_message,
    as_messages,
    check_turns,
    text_of,
    transcript,
    user_turns,
)
from fivefold.data.record_shapes import Shape, ShapeReader, first_of, has
from fivefold.errors import DataError
from fivefold.tokenizer.chat_format import Message

log = logging.getLogger("fivefold")

REJECTED = ("rejected", "reject")
# What a converted record holds.
_PREFERENCE, _LABELLED = "preference", "labelled"


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which one is better."""

    prompt: list[Message]
    """A conversation so far; the last message is the user's."""
    chosen: str
    """The better answer."""
    rejected: str | None
    """The worse one; None where nobody has written it yet."""


def read_preferences(settings: CorpusSettings, *, needs_rejected: bool = True) -> Iterator[Preference]:
    """The preferences that `--data` names, in order; what cannot be used is a bad line.

    Answers that are labelled good or bad one by one, as for KTO, are paired where both kinds answer the same prompt:
    the first good one with the first bad one and so on, in the place of the later of the two. What finds no partner is
    counted and said.

    Args:
        settings: which data.
        needs_rejected: False also reads records without a rejected answer, conversations among them: their last answer
            is the chosen one.

    Raises:
        ConfigError, DataError: nothing named, something that cannot be found, fetched or read, or answers with labels
            without a single pair.
    """
    shapes = PREFERENCE_SHAPES if needs_rejected else (*PREFERENCE_SHAPES, *_UNANSWERED_SHAPES)
    waiting: dict[str, tuple[list[str], list[str]]] = {}
    num_labelled = num_paired = 0
    for record in open_corpus(settings, (), _PreferenceReader(shapes, needs_rejected)):
        if _PREFERENCE in record:
            yield record[_PREFERENCE]
            continue
        prompt, answer, is_good = record[_LABELLED]
        num_labelled += 1
        answers = waiting.setdefault(repr(prompt), ([], []))  # the bad ones and the good ones
        others = [text for text in answers[not is_good] if text != answer]
        if not others:
            answers[is_good].append(answer)
            continue
        answers[not is_good].remove(others[0])
        num_paired += 2
        chosen, rejected = (answer, others[0]) if is_good else (others[0], answer)
        yield Preference(prompt, chosen, rejected)
    if num_labelled and not num_paired:
        raise DataError(f"Of {num_labelled:,} labelled answers no good and bad one are to the same prompt; give pairs.")
    if alone := num_labelled - num_paired:
        log.info("%s of %s labelled answers have no partner of the other label; left out.", f"{alone:,}", num_labelled)


class _PreferenceReader(ShapeReader):
    def __init__(self, shapes: tuple[Shape, ...], needs_rejected: bool) -> None:
        super().__init__(shapes, "preference")
        self._needs_rejected = needs_rejected

    def __call__(self, record: Record) -> Record:
        read = super().__call__(record)
        if MESSAGES in read:
            *prompt, answer = read[MESSAGES]
            return {_PREFERENCE: Preference(prompt, answer["content"], None)}
        if _PREFERENCE in read and read[_PREFERENCE].rejected is None and self._needs_rejected:
            raise BadRecord("there is no rejected answer; `fivefold rejected` writes them")
        return read


def _preference(prompt: list[Message], chosen: str, rejected: str | None) -> Record:
    """A preference that can be used, as a record.

    Raises:
        BadRecord: no prompt that ends with the user's turn, an empty answer, or twice the same one.
    """
    check_turns(prompt, last="user")
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if answer == "":
            raise BadRecord(f"the {name} answer is empty")
    if chosen == rejected:
        raise BadRecord("the chosen and the rejected answer are the same")
    return {_PREFERENCE: Preference(prompt, chosen, rejected)}


def _answer(value: Any, name: str) -> str:
    """An answer given as text, as a message, or as a list of one."""
    if isinstance(value, list) and len(value) == 1:
        (value,) = value
    if isinstance(value, dict):
        message = as_message(value)
        if message["role"] != "assistant":
            raise BadRecord(f"the {name} answer is the {message['role']}'s, expected the assistant's")
        return message["content"]
    return text_of(value, f"the {name} answer")


def _after(prompt: list[Message], value: Any, name: str) -> str:
    """An answer, which may repeat the prompt in front of it."""
    turns = as_messages(value) if isinstance(value, list) and len(value) > 1 else None
    turns = transcript(value) if isinstance(value, str) else turns
    if turns is None:
        return _answer(value, name)
    if turns[:-1] != prompt or turns[-1]["role"] != "assistant":
        raise BadRecord(f"the {name} answer is a dialogue that does not begin with the prompt")
    return turns[-1]["content"]


def _rejected(record: Record) -> Any:
    name = first_of(record, REJECTED)
    return None if name is None else record[name]


def _read_prompt_and_answers(record: Record, prompt: list[Message]) -> Record:
    rejected = _rejected(record)
    return _preference(
        prompt,
        _after(prompt, record["chosen"], "chosen"),
        None if rejected is None else _after(prompt, rejected, "rejected"),
    )


def _read_explicit(record: Record) -> Record:
    prompt = record[first_of(record, PROMPTS) or ""]
    turns = as_messages(prompt) if isinstance(prompt, list) else user_turns(text_of(prompt, "the prompt"))
    return _read_prompt_and_answers(record, turns)


def _read_implicit(record: Record) -> Record:
    """Two whole dialogues: the prompt is how both begin."""
    chosen, rejected = (_dialogue(value) for value in (record["chosen"], _rejected(record)))
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise BadRecord("the chosen and the rejected dialogue differ in more than the last answer")
    return _preference(chosen[:-1], _answer(chosen[-1], "chosen"), _answer(rejected[-1], "rejected"))


def _dialogue(value: Any) -> list[Message]:
    turns = transcript(value) if isinstance(value, str) else as_messages(value)
    if not turns:
        raise BadRecord("there is no prompt, and the chosen and rejected texts are no dialogues that hold one")
    return turns


def _read_labelled(record: Record) -> Record:
    list_name = first_of(record, LISTS)
    if list_name is not None:
        *prompt, last = as_messages(record[list_name]) or [{}]
        answer = _answer(last, "last")
    else:
        value, completion = record[first_of(record, PROMPTS) or ""], record[first_of(record, ANSWERS) or ""]
        prompt = as_messages(value) if isinstance(value, list) else user_turns(text_of(value, "the prompt"))
        answer = _answer(completion, "labelled")
    check_turns(prompt, last="user")
    if not answer:
        raise BadRecord("the labelled answer is empty")
    return {_LABELLED: (prompt, answer, record["label"])}


def _is_labelled(record: Record) -> bool:
    has_prompt = first_of(record, PROMPTS) is not None and first_of(record, ANSWERS) is not None
    return isinstance(record.get("label"), bool) and (has_prompt or first_of(record, LISTS) is not None)


PREFERENCE_SHAPES = (
    Shape(
        "dialogues with a chosen and a rejected answer",
        "messages or conversations, chosen, rejected",
        lambda record: first_of(record, LISTS) is not None and "chosen" in record,
        lambda record: _read_prompt_and_answers(record, as_messages(record[first_of(record, LISTS) or ""])),
    ),
    Shape(
        "alpaca with a chosen and a rejected answer",
        "instruction, input, chosen, rejected",
        lambda record: any(has(record, instruction, "chosen") for instruction, _, _ in ALPACA_FIELDS),
        lambda record: _read_prompt_and_answers(record, alpaca_prompt(record)),
    ),
    Shape(
        "preferences with a prompt",
        "prompt, chosen, rejected or reject: texts or lists of messages",
        lambda record: first_of(record, PROMPTS) is not None and "chosen" in record,
        _read_explicit,
    ),
    Shape(
        "preferences that share their prompt",
        "chosen, rejected: lists of messages, or texts of Human: and Assistant: turns",
        lambda record: "chosen" in record and first_of(record, REJECTED) is not None,
        _read_implicit,
    ),
    Shape(
        "answers labelled good or bad",
        "prompt and completion, or messages; label: true or false",
        _is_labelled,
        _read_labelled,
    ),
)
_UNANSWERED_SHAPES = CONVERSATION_SHAPES
