"""Rows of tokens in, the tokens that a model writes behind them out."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from fivefold.errors import ConfigError
from fivefold.models.decoding import DecodingSettings
from fivefold.t5.fill_blanks import untrained_ids
from fivefold.t5.model import T5Model

_NO_LIMIT = 1 << 20  # transformers' tokenizers write "none known" as 10^30


class Writer:
    """A model with its tokenizer's special tokens.

    Args:
        model: a T5 or a decoder, in evaluation mode.
        tokenizer: the model's.
        end_ids: tokens that end a text; by default those that the model and its tokenizer name.
        input_length: most tokens of a row that are read; by default what `tokenizer.model_max_length` and the model's
            positions allow.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: Sequence[int] = (),
        input_length: int | None = None,
    ) -> None:
        self.model: Any = model
        self.is_t5 = isinstance(model, T5Model)
        ids: tuple[Any, Any] = (tokenizer.pad_token_id, tokenizer.eos_token_id)
        self.pad_id: int = next(id_ for id_ in (*ids, 0) if id_ is not None)
        self._suppressed = untrained_ids(self.model, tokenizer) or None
        self._model_max_length, self._input_length = tokenizer.model_max_length, input_length
        stored = self.model.generation_config.eos_token_id
        ends = {*end_ids, *([] if stored is None else stored if isinstance(stored, list) else [stored])}
        self.end_ids: list[int] = sorted(ends or {ids[1]} - {None})

    def room(self, max_new_tokens: int) -> int | None:
        """Tokens of a row that are read where the model may write this many; None for no limit.

        Raises:
            ConfigError: the output leaves none, or `input_length` is more than the model has positions for.
        """
        config = self.model.config
        if self.is_t5:
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
        limits = [limit for limit in (most, self._model_max_length) if limit is not None and limit < _NO_LIMIT]
        return min(limits, default=None)

    def write(
        self,
        rows: Sequence[Sequence[int]],
        decoding: DecodingSettings,
        processors: Sequence[LogitsProcessor] = (),
        streamer: BaseStreamer | None = None,
        stop: StoppingCriteria | None = None,
    ) -> list[list[int]]:
        """The new tokens of each row, an end mark and padding behind them.

        Args:
            rows: tokens of each; they are read together.
            decoding: how tokens are chosen; without chance: what draws is a processor.
        """
        longest = max(map(len, rows))
        # A decoder's rows end, and go on, at the same place.
        padding = [[self.pad_id] * (longest - len(row)) for row in rows]
        padded = [[*row, *blank] if self.is_t5 else [*blank, *row] for row, blank in zip(rows, padding, strict=True)]
        masks = [[1] * len(row) + [0] * len(blank) for row, blank in zip(rows, padding, strict=True)]
        device = self.model.device
        tokens = self.model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor([mask if self.is_t5 else mask[::-1] for mask in masks], device=device),
            pad_token_id=self.pad_id,
            eos_token_id=self.end_ids or None,
            suppress_tokens=self._suppressed,
            logits_processor=LogitsProcessorList(list(processors)),
            stopping_criteria=[stop] if stop else None,
            streamer=streamer,
            max_new_tokens=decoding.max_new_tokens,
            max_length=None,  # which some stored settings have, for other uses
            num_beams=decoding.num_beams,
            repetition_penalty=decoding.repetition_penalty,
            no_repeat_ngram_size=decoding.no_repeat_ngram_size,
            do_sample=False,
        )
        return tokens[:, 1 if self.is_t5 else longest :].tolist()
