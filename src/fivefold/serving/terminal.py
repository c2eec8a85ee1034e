"""A chat in the terminal, or with lines that come from a file or a pipe."""

import sys
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any, TextIO

from fivefold.errors import ConfigError, DataError
from fivefold.models.answers import Answerer
from fivefold.models.decoding import ChatDecoding
from fivefold.tokenizer.chat_format import Message

COMMANDS = """\
/reset                     forget what was said, the system message excepted
/params                    show how answers are chosen
/params NAME=VALUE ...     change it, such as /params temperature=0.5 max_new_tokens=100
/help                      this
/exit                      leave, like Ctrl-D; Ctrl-C stops an answer
A message that begins with / is sent with a space in front of it."""


@dataclass
class Chat:
    """A conversation and what it is held with.

    Args:
        answerer: the model.
        decoding: how answers are chosen.
        system: a message that stands before everything, or None.
    """

    answerer: Answerer
    decoding: ChatDecoding
    system: str | None = None

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system message; the same questions then get the same answers."""
        self.messages: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        self._answers = 0

    def ask(self, text: str) -> Iterator[str]:
        """Say something and get the answer in pieces; what was written of it stays, also if it is interrupted."""
        self.messages.append({"role": "user", "content": text})
        written: list[str] = []
        try:
            for piece in self.answerer.stream(self.messages, self.decoding, self._answers):
                written.append(piece)
                yield piece
        finally:
            self._answers += 1
            if written:
                self.messages.append({"role": "assistant", "content": "".join(written)})
            else:
                self.messages.pop()  # roles have to alternate

    def set_params(self, words: list[str]) -> None:
        """Change how answers are chosen, all of it or nothing.

        Args:
            words: each NAME=VALUE.

        Raises:
            ConfigError: no such name, or a value that cannot be.
        """
        kinds = {field.name: type(getattr(self.decoding, field.name)) for field in fields(self.decoding)}
        changes: dict[str, Any] = {}
        for word in words:
            name, _, value = word.partition("=")
            if name not in kinds:
                raise ConfigError(f"There is no {name!r} to set; there are {', '.join(kinds)}, written NAME=VALUE.")
            changes[name] = _parsed(name, value, kinds[name])
        decoding = replace(self.decoding, **changes)
        self.answerer.room(decoding.max_new_tokens)
        self.decoding = decoding


def run_chat(chat: Chat, source: TextIO, *, is_terminal: bool) -> None:
    """Talk until the lines end or `/exit`: answers to standard output, everything else to standard error.

    Args:
        chat: to go on with.
        source: a user's turn a line.
        is_terminal: somebody types: show a prompt and a greeting, and let Ctrl-C at the prompt clear the line.

    Raises:
        DataError: a line that is not UTF-8.
    """
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() a history and editing
        _say("Ctrl-C stops an answer, Ctrl-D leaves, /help lists the commands.")
    while (line := _next_line(source, is_terminal)) is not None:
        if not line.strip():
            continue
        if not line.startswith("/"):
            _answer(chat, line.strip(), is_terminal)
        elif line.split()[0] == "/exit":
            return
        else:
            _obey(chat, line.split())


def _next_line(source: TextIO, is_terminal: bool) -> str | None:
    while True:
        try:
            if not is_terminal:
                line = source.readline()
                return line.rstrip("\n") if line else None
            return input("> ")
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            if not is_terminal:
                raise
            print()
        except UnicodeDecodeError as error:
            raise DataError(f"Standard input is not UTF-8 text ({error.reason}); convert it first.") from None


def _answer(chat: Chat, text: str, is_terminal: bool) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        _say("That holds half a character, which no tokenizer reads; write it again.")
        return
    cuts = chat.answerer.chat_format.cuts
    before = replace(cuts)
    pieces, is_silent = chat.ask(text), True
    try:
        for piece in pieces:
            print(_shown(piece) if sys.stdout.isatty() else piece, end="", flush=True)
            is_silent = False
        print(flush=True)
        if is_silent:
            _say("(the model said nothing, and does not remember the question)")
    except KeyboardInterrupt:
        if not is_terminal:
            raise
        print(flush=True)
        _say("(stopped)")
    except DataError as error:
        if not is_terminal:
            raise
        _say(str(error))
    finally:
        pieces.close()  # type: ignore[attr-defined]
    if cuts.turns > before.turns:
        _say("(the oldest turns no longer fit and were not read; /reset begins anew)")
    elif cuts.prompts > before.prompts:
        _say("(the message is too long; its end was not read)")


def _shown(text: str) -> str:
    """A text without the characters by which it could command the terminal instead of standing in it."""
    return "".join(character for character in text if character in "\n\t" or unicodedata.category(character) != "Cc")


def _obey(chat: Chat, words: list[str]) -> None:
    match words:
        case ["/help"]:
            _say(COMMANDS)
        case ["/reset"]:
            chat.reset()
            _say("(forgotten)")
        case ["/params", *changes]:
            try:
                chat.set_params(changes)
            except ConfigError as error:
                _say(str(error))
            else:
                values = {field.name: getattr(chat.decoding, field.name) for field in fields(chat.decoding)}
                _say(" ".join(f"{name}={value}" for name, value in values.items()))
        case _:
            _say(f"There is no command {' '.join(words)!r}; /help lists them, and a space in front sends it as it is.")


def _parsed(name: str, value: str, kind: type) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[value.lower()]
        return kind(value)
    except (KeyError, ValueError):
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise ConfigError(f"{name} got {value!r}; it takes {expected}.") from None


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
