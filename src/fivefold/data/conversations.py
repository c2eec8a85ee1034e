"""Records of the shapes in which people keep conversations, to lists of messages."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from fivefold.corpus.bad_lines import BadRecord
from fivefold.corpus.files import Record
from fivefold.corpus.read import Corpus, open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.record_shapes import Shape, ShapeReader, first_of, has
from fivefold.tokenizer.chat_format import Message

MESSAGES = "messages"
"""The field of a converted record that holds its conversation."""
TEXT = "text"
"""The role of plain text, which stands alone as a conversation of one message."""

ROLES = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot"), "assistant"),
}
"""What the roles are called elsewhere, to Hugging Face's names."""

PROMPTS = ("prompt", "question")
ANSWERS = ("response", "completion", "answer", "output")
ALPACA_FIELDS = (("instruction_zh", "input_zh", "output_zh"), ("instruction", "input", "output"))
LISTS = ("messages", "conversations", "conversation")

# "Human:" and "Assistant:" begin the turns of BELLE's multi-turn data and of Anthropic's; a colon may be full-width.
_TURN = re.compile(r"(?:^|\n)\s*(Human|Assistant)\s*[:\uff1a]")


def open_conversations(settings: CorpusSettings) -> Corpus:
    """The conversations that `--data` names, each a record {"messages": [...]}; what cannot be used is a bad line.

    A conversation is user and assistant by turns, the user first and the assistant last, perhaps behind one system
    message; no turn is empty. A record that is no conversation, but has a text in `text_field`, is plain text; if that
    field was named, all records are.

    Raises:
        ConfigError, DataError: nothing named, or something that cannot be found, fetched or read.
    """
    name = settings.text_field
    text = _plain_shape("plain text", name, lambda record: name in record, lambda record: _read_text(record, name))
    shapes = (*CONVERSATION_SHAPES, text) if name == CorpusSettings().text_field else (text,)
    return open_corpus(settings, (), ShapeReader(shapes, "conversation"))


def as_messages(turns: Any) -> list[Message]:
    """Messages in Hugging Face's or ShareGPT's spelling to {"role", "content"}; blank system messages are left out.

    Raises:
        BadRecord: no list of messages, or a role or content that is none.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecord(f"turns are a {type(turns).__name__}, not a list of messages")
    messages = [as_message(turn) for turn in turns]
    return [message for message in messages if message["role"] != "system" or message["content"]]


def as_message(turn: Record) -> Message:
    """One message, stripped of blanks around it; arguments and errors as `as_messages`."""
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if role not in ROLES:
        raise BadRecord(f"a turn's role is {role!r}, expected one of {', '.join(ROLES)}")
    if isinstance(content, list):  # parts, as models that see pictures have them
        content = "".join(map(_part_text, content))
    return {"role": ROLES[role], "content": text_of(content, f"what the {ROLES[role]} says")}


def text_of(value: Any, what: str) -> str:
    """A text stripped of blanks around it.

    Raises:
        BadRecord: no text, or one that UTF-8 cannot hold.
    """
    if not isinstance(value, str):
        raise BadRecord(f"{what} is {'missing' if value is None else f'a {type(value).__name__}, not text'}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{what} holds half a character (a lone surrogate)") from None
    return value.strip()


def user_turns(text: str) -> list[Message]:
    """A prompt as messages: one of the user's, or more where it is a dialogue of "Human:" and "Assistant:" lines."""
    return transcript(text) or [{"role": "user", "content": text}]


def transcript(text: str) -> list[Message] | None:
    """A dialogue in one text, its turns begun by "Human:" and "Assistant:", or None where the text is no such thing.

    A last "Assistant:" with nothing behind it, which asks for the answer, is left out.
    """
    head, *parts = _TURN.split(text)
    if head.strip() or parts[:1] != ["Human"]:
        return None
    roles, contents = parts[::2], [content.strip() for content in parts[1::2]]
    turns = [{"role": ROLES[role.lower()], "content": content} for role, content in zip(roles, contents, strict=True)]
    return turns[:-1] if turns[-1] == {"role": "assistant", "content": ""} else turns


def check_turns(messages: Iterable[Message], *, last: str) -> None:
    """Refuse what is no conversation.

    Args:
        messages: the system's perhaps, then user and assistant by turns.
        last: whose message must be the last one.

    Raises:
        BadRecord: no turns, an empty one, or one out of turn.
    """
    turns = list(messages)
    if turns and turns[0]["role"] == "system":
        del turns[0]
    if not turns:
        raise BadRecord("there are no turns")
    for number, message in enumerate(turns):
        expected = ("user", "assistant")[number % 2]
        if message["role"] != expected:
            raise BadRecord(f"turn {number + 1} is the {message['role']}'s where the {expected}'s was expected")
        if not message["content"]:
            raise BadRecord(f"turn {number + 1}, the {message['role']}'s, is empty")
    if turns[-1]["role"] != last:
        raise BadRecord(f"the last turn is the {turns[-1]['role']}'s where the {last}'s was expected")


def alpaca_prompt(record: Record) -> list[Message]:
    """What Alpaca's fields say before the answer: system, history, and the instruction with its input below.

    Raises:
        BadRecord: fields that hold something else.
    """
    instruction, input_name, _ = _alpaca_fields(record)
    parts = [text_of(record.get(name) or "", name) for name in (instruction, input_name)]
    messages = _system(record)
    for exchange in record.get("history") or []:
        if not isinstance(exchange, list | tuple) or len(exchange) != 2:
            raise BadRecord("history is no list of pairs of question and answer")
        for role, content in zip(("user", "assistant"), exchange, strict=True):
            messages.append({"role": role, "content": text_of(content, "history")})
    return [*messages, *user_turns("\n".join(filter(None, parts)))]


def _system(record: Record) -> list[Message]:
    content = text_of(record.get("system") or "", "system")
    return [{"role": "system", "content": content}] if content else []


def _alpaca_fields(record: Record) -> tuple[str, str, str]:
    return next(names for names in ALPACA_FIELDS if names[0] in record)


def _part_text(part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        raise BadRecord(f"a turn holds {part.get('type') if isinstance(part, dict) else part!r}, expected text only")
    return part.get("text", part.get("value", ""))


def _finished(messages: list[Message]) -> Record:
    check_turns(messages, last="assistant")
    return {MESSAGES: messages}


def _read_list(record: Record) -> Record:
    name = first_of(record, LISTS)
    assert name is not None
    return _finished([*_system(record), *as_messages(record[name])])


def _read_alpaca(record: Record) -> Record:
    answer = text_of(record[_alpaca_fields(record)[2]], "output")
    return _finished([*alpaca_prompt(record), {"role": "assistant", "content": answer}])


def _read_pair(record: Record) -> Record:
    prompt, answer = record[first_of(record, PROMPTS) or ""], record[first_of(record, ANSWERS) or ""]
    before = as_messages(prompt) if isinstance(prompt, list) else user_turns(text_of(prompt, "the prompt"))
    if isinstance(answer, list):
        return _finished([*before, *as_messages(answer)])
    return _finished([*before, {"role": "assistant", "content": text_of(answer, "the answer")}])


def _read_text(record: Record, name: str) -> Record:
    if not text_of(record[name], name):
        raise BadRecord(f"{name} is empty")
    return {MESSAGES: [{"role": TEXT, "content": record[name]}]}


def is_preference(record: Record) -> bool:
    """Whether a record says which answers are good: its answer may be a bad one."""
    return "chosen" in record or isinstance(record.get("label"), bool)


def _plain_shape(name: str, fields: str, fits: Callable[[Record], bool], read: Callable[[Record], Record]) -> Shape:
    return Shape(name, fields, lambda record: fits(record) and not is_preference(record), read)


CONVERSATION_SHAPES = (
    _plain_shape("messages", "messages: [{role, content}]", lambda record: has(record, "messages"), _read_list),
    _plain_shape(
        "ShareGPT", "conversations: [{from, value}]", lambda record: first_of(record, LISTS) is not None, _read_list
    ),
    _plain_shape(
        "alpaca",
        "instruction, input, output, perhaps history and system; or instruction_zh, input_zh, output_zh",
        lambda record: any(has(record, instruction, output) for instruction, _, output in ALPACA_FIELDS),
        _read_alpaca,
    ),
    _plain_shape(
        "prompt and response",
        f"{' or '.join(PROMPTS)}, and {' or '.join(ANSWERS)}",
        lambda record: first_of(record, PROMPTS) is not None and first_of(record, ANSWERS) is not None,
        _read_pair,
    ),
)
