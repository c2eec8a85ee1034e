"""Fill-in-the-blank: a model trained on span corruption says what stood where `___` stands now."""

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from fivefold.errors import DataError
from fivefold.t5.model import T5Model
from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.special_tokens import sentinel_ids

BLANK = re.compile(r"_{3,}|<extra_id_\d+>")


def has_blanks(text: str) -> bool:
    """Whether a text has a blank: three or more underscores, or a sentinel written out."""
    return BLANK.search(text) is not None


class BlanksInOrder(LogitsProcessor):
    """Allows only answers of the form <extra_id_0> words <extra_id_1> words ... </s>, one part for each blank.

    In training a text has many gaps, so a model mostly ends one by opening the next. After the last blank that is taken
    for the end: the end mark gets the next sentinel's score where that is higher.

    Args:
        sentinels: [N] ids of the sentinels, first one first.
        num_blanks: [rows] blanks of each row that is decoded (beams count as rows).
        eos_id: id of the end mark, allowed once every blank has its words.
        forbidden: ids never to be generated: special tokens, rows of the table that no token has.
    """

    def __init__(self, sentinels: Tensor, num_blanks: Tensor, eos_id: int, forbidden: Tensor) -> None:
        self.sentinels = sentinels
        self.num_blanks = num_blanks
        self.eos_id = eos_id
        self.forbidden = forbidden

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [rows, V] with everything else at minus infinity."""
        position = torch.isin(input_ids, self.sentinels).sum(-1)  # sentinels written so far
        just_opened = torch.isin(input_ids[:, -1], self.sentinels)
        blocked = torch.zeros_like(scores, dtype=torch.bool)
        blocked[:, self.sentinels] = True
        blocked[:, self.forbidden] = True
        blocked[:, self.eos_id] = (position < self.num_blanks) | just_opened
        may_open = (position < self.num_blanks) & ~just_opened
        rows = may_open.nonzero().squeeze(-1)
        blocked[rows, self.sentinels[position[rows]]] = False
        ending = (position >= self.num_blanks).nonzero().squeeze(-1)
        following = self.sentinels[position[ending].clamp(max=len(self.sentinels) - 1)]
        scores = scores.clone()
        scores[ending, self.eos_id] = torch.maximum(scores[ending, self.eos_id], scores[ending, following])
        at_start = (position == 0).nonzero().squeeze(-1)
        blocked[at_start] = True
        blocked[at_start, self.sentinels[0]] = False
        return scores.masked_fill(blocked, float("-inf"))


def fill_blanks(
    model: T5Model, tokenizer: PreTrainedTokenizerBase, texts: list[str], **generation: Any
) -> list[list[str]]:
    """What the model puts into the blanks of each text, in order.

    Args:
        texts: each with at least one blank (`___` or a written-out sentinel).
        generation: arguments of `generate()`.

    Raises:
        DataError: a text without a blank, or with more of them than the tokenizer has sentinels.
    """
    sentinels = torch.from_numpy(sentinel_ids(tokenizer))
    encode = CorpusEncoder(tokenizer)
    vocabulary = tokenizer.get_vocab()
    eos_id, pad_id = (vocabulary[str(token)] for token in (tokenizer.eos_token, tokenizer.pad_token))
    rows: list[list[int]] = []
    for text in texts:
        parts = encode(BLANK.split(text))
        if not 1 < len(parts) <= len(sentinels) + 1:
            raise DataError(
                f"{text!r} has {len(parts) - 1} blanks; it needs at least one ___ and at most {len(sentinels)}, the "
                "tokenizer's number of sentinels."
            )
        row = parts[0].tolist()
        for sentinel, part in zip(sentinels.tolist(), parts[1:], strict=False):
            row += [sentinel, *part.tolist()]
        rows.append([*row, eos_id])
    longest = max(map(len, rows))
    input_ids = torch.tensor([row + [pad_id] * (longest - len(row)) for row in rows], device=model.device)
    attention_mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.device)
    num_blanks = torch.isin(input_ids.cpu(), sentinels).sum(-1)
    wordless = set(tokenizer.all_special_ids) - {eos_id, *sentinels.tolist()}
    paths = generation.get("num_beams", 1)
    processor = BlanksInOrder(
        sentinels.to(model.device),
        num_blanks.repeat_interleave(paths).to(model.device),
        eos_id,
        torch.tensor(sorted(wordless | set(untrained_ids(model, tokenizer))), device=model.device),
    )
    tokens = model.generate(
        input_ids=input_ids,
        attention_mask=attention_mask,
        logits_processor=LogitsProcessorList([processor]),
        **generation,
    )
    special = {eos_id, pad_id}
    return [
        [str(tokenizer.decode(words)) for words in _split_at_sentinels(row, sentinels.tolist(), special)][: int(wanted)]
        for row, wanted in zip(tokens.tolist(), num_blanks, strict=True)
    ]


def fill_in(text: str, fillings: list[str]) -> str:
    """The text with its blanks replaced; blanks beyond the fillings stay."""
    remaining = iter(fillings)
    return BLANK.sub(lambda blank: next(remaining, blank[0]), text)


def untrained_ids(model: T5Model, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Rows of the output layer that no token has: they were never trained and must not be generated."""
    known = set(tokenizer.get_vocab().values())
    return [token for token in range(model.config.vocab_size) if token not in known]


def _split_at_sentinels(tokens: list[int], sentinels: list[int], special: set[int]) -> Iterator[list[int]]:
    current: list[int] | None = None
    for token in tokens:
        if token in sentinels:
            if current is not None:
                yield current
            current = []
        elif current is not None and token not in special:
            current.append(token)
    if current is not None:
        yield current
