"""Conversations in, answers out: many at once, or one piece by piece while it is being written."""

from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from fivefold.errors import ConfigError
from fivefold.models.decoding import DecodingSettings
from fivefold.models.seeded_sampling import SeededSampling
from fivefold.models.text_stream import TextStream, answer_text
from fivefold.t5.fill_blanks import untrained_ids
from fivefold.t5.model import T5Model
from fivefold.tokenizer.chat_format import ChatFormat, Message

_NO_LIMIT = 1 << 20  # transformers' tokenizers write "none known" as 10^30


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
        self.model: Any = model
        self.tokenizer = tokenizer
        self.chat_format = ChatFormat(tokenizer, "t5" if isinstance(model, T5Model) else "llama")
        self._input_length = input_length
        self._suppressed = untrained_ids(self.model, tokenizer) or None
        stored = self.model.generation_config.eos_token_id
        ends = [] if stored is None else stored if isinstance(stored, list) else [stored]
        self._end_ids = sorted({*self.chat_format.end_ids, *ends})

    def room(self, max_new_tokens: int) -> int | None:
        """Tokens of a conversation that are read where the answer may have this many; None for no limit.

        Raises:
            ConfigError: the answer leaves none, or `input_length` is more than the model has positions for.
        """
        config = self.model.config
        if isinstance(self.model, T5Model):
            positions, reserved = config.longest_input(), 0
        else:
            positions, reserved = getattr(config, "max_position_embeddings", None), max_new_tokens
        most = None if positions is None else positions - reserved
        if most is not None and most < 1:
            raise ConfigError(
                f"--max_new_tokens {max_new_tokens} leaves nothing of the model's {positions} positions to the "
                "conversation; give fewer."
            )
        if self._input_length is not None:
            if most is not None and self._input_length > most:
                raise ConfigError(
                    f"--input_length is {self._input_length}, but the model has {positions} positions, {reserved} of "
                    f"which --max_new_tokens keeps for the answer; give {most} at most."
                )
            return self._input_length
        limits = [limit for limit in (most, self.tokenizer.model_max_length) if limit is not None and limit < _NO_LIMIT]
        return min(limits, default=None)

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
        """The new tokens of each row, padding behind them."""
        pad_id = next(id_ for id_ in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if id_ is not None)
        longest = max(map(len, rows))
        # A decoder's rows end, and go on, at the same place.
        is_t5 = isinstance(self.model, T5Model)
        padding = [[pad_id] * (longest - len(row)) for row in rows]
        padded = [row + blank if is_t5 else blank + row for row, blank in zip(rows, padding, strict=True)]
        masks = [[1] * len(row) + [0] * len(blank) for row, blank in zip(rows, padding, strict=True)]
        processors = [SeededSampling(decoding, numbers, draw)] if decoding.do_sample else []
        tokens = self.model.generate(
            input_ids=torch.tensor(padded, device=self.model.device),
            attention_mask=torch.tensor([mask if is_t5 else mask[::-1] for mask in masks], device=self.model.device),
            pad_token_id=pad_id,
            eos_token_id=self._end_ids,
            suppress_tokens=self._suppressed,
            logits_processor=LogitsProcessorList(processors),
            stopping_criteria=[stop] if stop else None,
            streamer=streamer,
            max_new_tokens=decoding.max_new_tokens,
            max_length=None,  # which some stored settings have, for other uses
            num_beams=decoding.num_beams,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
            do_sample=False,  # the processor draws
        )
        return tokens[:, 1 if is_t5 else longest :].tolist()


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
