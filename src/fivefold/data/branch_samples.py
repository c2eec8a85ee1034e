"""Main texts and branches as tokens, and how many branches go together."""

from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fivefold.data.branch_layout import Branch
from fivefold.data.branch_records import BranchedText
from fivefold.data.random_bits import Purpose, random_bits, random_keys
from fivefold.data.settings import BranchDataSettings
from fivefold.errors import ConfigError, DataError


class BranchSample(NamedTuple):
    """A main text and its branches, as tokens."""

    main: NDArray
    branches: list[Branch]

    @property
    def num_tokens(self) -> int:
        """Main's once."""
        return len(self.main) + sum(len(branch.ids) for branch in self.branches)


class BranchEncoder:
    """Texts to tokens; counts what it cuts.

    Args:
        tokenizer: with an end mark. What it puts before a text by itself stands before main.
        data: says how long a branch may be.
        max_positions: that the model has.

    Raises:
        ConfigError: the tokenizer has no end mark.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, data: BranchDataSettings, max_positions: int | None) -> None:
        end_id: Any = tokenizer.eos_token_id
        if end_id is None:
            raise ConfigError("The tokenizer has no end mark (eos_token), at which a branch would stop; give another.")
        self._tokenizer, self._most, self._max_positions = tokenizer, data.input_length, max_positions
        self.end_id: int = end_id
        self._begin = begin_ids(tokenizer)
        self.num_branches = self.num_cut = 0

    def __call__(self, text: BranchedText) -> BranchSample:
        """One sample of all of a record's branches, each with an end mark unless it is cut.

        Raises:
            DataError: main and its longest branch are longer than the model's positions.
        """
        main = np.array([*self._begin, *self._ids([text.main or ""])[0][0]], np.int64)
        branches = []
        for (ids, ends), branch in zip(self._ids([one.text for one in text.branches]), text.branches, strict=True):
            offset = sum(end <= branch.answer_offset for end in ends)
            branches.append(Branch(np.array([*ids, self.end_id][: self._most], np.int64), offset))
            self.num_cut += len(ids) >= self._most
        self.num_branches += len(branches)
        longest = len(main) + max(len(branch.ids) for branch in branches)
        if self._max_positions is not None and longest > self._max_positions:
            raise DataError(
                f"A main text of {len(main):,} tokens (it begins {(text.main or '')[:40]!r}) and a branch are "
                f"{longest:,} tokens, but the model has {self._max_positions:,} positions; shorten it, or give less "
                "--max_seq_len."
            )
        return BranchSample(main, branches)

    def _ids(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """Tokens of each text, and the character behind each."""
        encoded = self._tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
        ends = ([end for _, end in offsets] for offsets in encoded["offset_mapping"])
        return list(zip(encoded["input_ids"], ends, strict=True))


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a tokenizer puts before a text by itself: its first token, or nothing."""
    first: Any = tokenizer.bos_token_id
    return [first] if list(tokenizer("a").input_ids[:1]) == [first] else []


def grouped(
    samples: Iterable[tuple[BranchSample, bool]], data: BranchDataSettings, seed: int, first: int = 0
) -> Iterator[BranchSample]:
    """Samples of as many branches as the settings say.

    Args:
        samples: and whether each is a single text. Those are put together, others divided.
        seed: of the number of branches, where that is drawn.
        first: number of the first draw.

    Raises:
        DataError: a branch that alone is too long for a sample.
    """
    sizes = _sizes(data, seed, first)
    singles: list[Branch] = []
    size, begin, most = next(sizes), np.zeros(0, np.int64), data.max_total_tokens or np.inf
    for sample, is_single in samples:
        waiting = singles if is_single else []
        begin = sample.main if is_single else begin
        room = most - len(sample.main) - sum(len(branch.ids) for branch in waiting)
        for branch in sample.branches:
            if len(sample.main) + len(branch.ids) > most:
                raise DataError(
                    f"A main text of {len(sample.main):,} tokens and a branch of {len(branch.ids):,} are more than "
                    f"--max_total_tokens {data.max_total_tokens:,}; raise it, or give less --max_seq_len."
                )
            if waiting and (len(waiting) == size or len(branch.ids) > room):
                yield BranchSample(sample.main, waiting.copy())
                waiting.clear()
                size, room = next(sizes), most - len(sample.main)
            waiting.append(branch)
            room -= len(branch.ids)
        if not is_single:
            yield BranchSample(sample.main, waiting)
            size = next(sizes)
    if singles:
        yield BranchSample(begin, singles)


def _sizes(data: BranchDataSettings, seed: int, first: int) -> Iterator[int]:
    if not data.max_branches_per_sample:
        while True:
            yield data.branches_per_sample
    for number in count(first):
        bits = random_bits(random_keys(seed, Purpose.NUM_BRANCHES, number), 1)[0, 0]
        yield 1 + int(bits % np.uint64(data.max_branches_per_sample))


def encoded(texts: Iterable[BranchedText], encode: BranchEncoder) -> Iterator[tuple[BranchSample, bool]]:
    """Samples for `grouped`."""
    return ((encode(text), text.main is None) for text in texts)
