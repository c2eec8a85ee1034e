"""Text in, text out: a T5 answers or fills in blanks, a decoder continues."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fivefold.errors import DataError
from fivefold.t5.fill_blanks import fill_blanks, fill_in, has_blanks, untrained_ids
from fivefold.t5.model import T5Model


def check_inputs(model: PreTrainedModel, texts: list[str]) -> None:
    """Refuse blanks that nobody could fill in.

    Raises:
        DataError: a text with a blank for a decoder.
    """
    blanked = [] if isinstance(model, T5Model) else [text for text in texts if has_blanks(text)]
    if blanked:
        raise DataError(
            f"{blanked[0]!r} has a blank, which only a T5 fills in; give a decoder the text before the blank."
        )


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: list[str], batch_size: int, **generation: Any
) -> Iterator[dict[str, Any]]:
    """An {"input", "output"} for each input, in order, with the "blanks" that were filled in where there were any.

    Args:
        model: a T5, or a decoder, whose outputs begin where the inputs end.
        batch_size: inputs generated from together.
        generation: arguments of `generate()`.

    Raises:
        DataError: as `check_inputs`, or more blanks than the tokenizer has sentinels.
    """
    check_inputs(model, inputs)
    for start in range(0, len(inputs), batch_size):
        texts = inputs[start : start + batch_size]
        if isinstance(model, T5Model):
            outputs = _answers(model, tokenizer, texts, generation)
        else:
            outputs = [{"output": text} for text in _continuations(model, tokenizer, texts, generation)]
        yield from ({"input": text, **output} for text, output in zip(texts, outputs, strict=True))


def _answers(
    model: T5Model, tokenizer: PreTrainedTokenizerBase, texts: list[str], generation: dict[str, Any]
) -> list[dict[str, Any]]:
    outputs: dict[int, dict[str, Any]] = {}
    blanked = [place for place, text in enumerate(texts) if has_blanks(text)]
    plain = [place for place, text in enumerate(texts) if not has_blanks(text)]
    if blanked:
        fillings = fill_blanks(model, tokenizer, [texts[place] for place in blanked], **generation)
        for place, words in zip(blanked, fillings, strict=True):
            outputs[place] = {"output": fill_in(texts[place], words), "blanks": words}
    if plain:
        batch = tokenizer([texts[place] for place in plain], padding=True, return_tensors="pt").to(model.device)
        tokens = model.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            suppress_tokens=untrained_ids(model, tokenizer) or None,
            **generation,
        )
        for place, row in zip(plain, tokens, strict=True):
            outputs[place] = {"output": tokenizer.decode(row, skip_special_tokens=True)}
    return [outputs[place] for place in range(len(texts))]


def _continuations(
    model: Any, tokenizer: PreTrainedTokenizerBase, texts: list[str], generation: dict[str, Any]
) -> list[str]:
    """What a decoder writes behind each text."""
    special = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    pad_id = next(token for token in special if token is not None)
    prompts = [_prompt(ids, tokenizer) for ids in tokenizer(texts)["input_ids"]]  # type: ignore[arg-type]
    longest = max(map(len, prompts))
    # Padding stands on the left, so that all rows end, and go on, at the same place.
    rows = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    tokens = model.generate(
        input_ids=torch.tensor(rows, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        pad_token_id=pad_id,
        suppress_tokens=untrained_ids(model, tokenizer) or None,
        **generation,
    )

    def text_of(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=True))

    # Not the new tokens alone: at the start of a text a tokenizer drops the space in front of a word.
    new_tokens = tokens[:, longest:].tolist()
    return [text_of(prompt + new)[len(text_of(prompt)) :] for prompt, new in zip(prompts, new_tokens, strict=True)]


def _prompt(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens to go on from: without the end mark that T5's tokenizers add, and behind one for an empty text."""
    beginning: list[Any] = [tokenizer.bos_token_id, tokenizer.eos_token_id, 0]
    ids = ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids
    return ids or [next(token for token in beginning if token is not None)]
