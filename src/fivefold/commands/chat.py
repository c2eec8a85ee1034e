"""Talk with a model: answers appear as they are written, the conversation goes on; piped input is a turn a line."""

import sys
from dataclasses import dataclass

from fivefold.errors import ConfigError
from fivefold.models.decoding import ChatDecoding


@dataclass
class ChatSettings:
    """Whom to talk with."""

    model: str
    """Folder or Hub id of a model with its tokenizer, such as RUN/final; an adapter's folder is opened on its base."""
    system: str | None = None
    """A message to the model that stands before everything said."""
    input_length: int | None = None
    """Most tokens of the conversation that the model reads, the oldest turns going first; by default what its tokenizer
    was made for and what it has positions for, less --max_new_tokens in a decoder."""

    def __post_init__(self) -> None:
        if self.input_length is not None and self.input_length < 1:
            raise ConfigError(f"--input_length is {self.input_length}; it must be at least 1.")
        if self.system is not None and not self.system.strip():
            raise ConfigError("--system is blank; leave it out or say something.")


def run(settings: ChatSettings, decoding: ChatDecoding, *, dry_run: bool) -> None:
    """Open the model and talk until the lines end."""
    from fivefold.models.answers import Answerer
    from fivefold.serving.open_model import open_model
    from fivefold.serving.terminal import Chat, run_chat

    model, tokenizer = open_model(settings.model)
    is_known = tokenizer.chat_template is not None
    answerer = Answerer(model, tokenizer, settings.input_length)
    answerer.room(decoding.max_new_tokens)
    print(f"{settings.model}: {model.num_parameters():,} parameters", file=sys.stderr)
    if not is_known:
        print(
            "It has no chat template, so it was hardly trained to chat; it reads conversations as "
            f"{answerer.chat_format.describe()}.",
            file=sys.stderr,
        )
    if not dry_run:
        run_chat(Chat(answerer, decoding, settings.system), sys.stdin, is_terminal=sys.stdin.isatty())
