"""Conversations in, answers out: many at once, or one piece by piece while it is being written."""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from fivefold.models.decoding import DecodingSettings
from fivefold.models.seeded_sampling import SeededSampling
from fivefold.models.text_stream import TextStream, answer_text
from fivefold.models.writing import Writer
from fivefold.t5.model import T5Model
from fivefold.tokenizer.chat_format import ChatFormat, Message


def stream_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **decoding: Any
) -> Iterator[str]:
    """The answer to a conversation, in pieces as they are written.

    Args:
        model: a T5 or a decoder, in evaluation mode.
        tokenizer: the model's, with its chat template.
        messages: {"role", "content"} dicts, the last one the user's.
        decoding: fields of `DecodingSettings`, such as max_new_tokens=64, do_sample=True, seed=1.

    Returns:
        Pieces of whole characters; closing the iterator stops the model.
    """
    return Answerer(model, tokenizer).stream(messages, DecodingSettings(**decoding))


class Answerer:
    """A model that answers conversations, as its chat template writes them.

    Args:
        model: a T5 or a decoder, in evaluation mode.
        tokenizer: the model's; it is given a chat template if it has none.
        input_length: most tokens of a conversation that are read; by default what `tokenizer.model_max_length` and the
            model's positions allow. The oldest turns go first; `chat_format.cuts` counts.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, input_length: int | None = None
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.chat_format = ChatFormat(tokenizer, "t5" if isinstance(model, T5Model) else "llama")
        self._writer = Writer(model, tokenizer, sorted(self.chat_format.end_ids), input_length)

    def room(self, max_new_tokens: int) -> int | None:
        """Tokens of a conversation that are read where the answer may have this many; as `Writer.room`."""
        return self._writer.room(max_new_tokens)

    def write(
        self,
        prompts: Sequence[Sequence[Message]],
        decoding: DecodingSettings,
        numbers: Sequence[int] | None = None,
        draw: int = 0,
    ) -> list[str]:
        """An answer to each of several conversations, written at the same time.

        Args:
            prompts: conversations, the last message of each the user's.
            decoding: how tokens are chosen.
            numbers: drawn tokens follow from the seed and a conversation's number alone; by default 0, 1, 2, ...
            draw: another one gives other answers to the same conversations.
        """
        room = self.room(decoding.max_new_tokens)
        rows = [ids.tolist() for ids in self.chat_format.encode_prompts(prompts, room)]
        tokens = self._generate(rows, decoding, list(numbers if numbers is not None else range(len(rows))), draw)
        return [answer_text(self.tokenizer, row) for row in tokens]

    def stream(self, messages: Sequence[Message], decoding: DecodingSettings, number: int = 0) -> Iterator[str]:
        """The one answer that `write` would give, in pieces; arguments as there.

        The model works in a thread of its own, which ends with the iterator: also where that is closed early, or
        interrupted while it waits.
        """
        row = self.chat_format.prompt_ids(messages, self.room(decoding.max_new_tokens)).tolist()
        arrived: SimpleQueue[int | BaseException | None] = SimpleQueue()
        is_over = Event()

        def work() -> None:
            try:
                self._generate([row], decoding, [number], 0, _Arrivals(arrived), _StopWhen(is_over))
            except BaseException as error:
                arrived.put(error)
            else:
                arrived.put(None)

        thread = Thread(target=work, daemon=True)
        thread.start()
        text = TextStream(self.tokenizer)
        try:
            while (token := arrived.get()) is not None:
                if isinstance(token, BaseException):
                    raise token
                if piece := text.push(token):
                    yield piece
            if piece := text.finish():
                yield piece
        finally:
            is_over.set()
            thread.join()

    def _generate(
        self,
        rows: list[list[int]],
        decoding: DecodingSettings,
        numbers: list[int],
        draw: int,
        streamer: BaseStreamer | None = None,
        stop: StoppingCriteria | None = None,
    ) -> list[list[int]]:
        processors = [SeededSampling(decoding, numbers, draw)] if decoding.do_sample else []
        return self._writer.write(rows, decoding, processors, streamer, stop)


class _Arrivals(BaseStreamer):
    """Passes the tokens of one row on as they are written."""

    def __init__(self, arrived: "SimpleQueue[int | BaseException | None]") -> None:
        self._arrived = arrived
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        if not self._is_prompt:
            for token in value.flatten().tolist():
                self._arrived.put(token)
        self._is_prompt = False

    def end(self) -> None:
        pass


class _StopWhen(StoppingCriteria):
    def __init__(self, event: Event) -> None:
        self._event = event

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self._event.is_set(), device=input_ids.device)
