"""Main texts and branches by sample number: held in memory, or as they are read."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fivefold.corpus.read import Corpus
from fivefold.data.branch_layout import branch_batch, branch_layout
from fivefold.data.branch_records import BRANCHED, BranchedText
from fivefold.data.branch_samples import BranchEncoder, BranchSample, encoded, grouped
from fivefold.data.examples import EpochOrder
from fivefold.data.permutation import permuted
from fivefold.data.random_bits import Purpose, random_keys
from fivefold.data.settings import BranchDataSettings
from fivefold.data.source import Source
from fivefold.errors import DataError

_RECORDS_PER_BLOCK = 1024


class BranchSource(Source):
    """Samples held in memory; an epoch visits each once, in a new random order every time.

    Args:
        samples: at least one.
        data: says which tokens are learned, and how many branches there may be.
        pad_id: the padding token.
        seed: of the order, and of the numbers that branches get, which are drawn so that all of them are learned.
        shuffle: False keeps the order and numbers branches from 1, for evaluation.
        note: what they are, for `describe`.
    """

    def __init__(
        self,
        samples: Sequence[BranchSample],
        data: BranchDataSettings,
        *,
        pad_id: int,
        seed: int,
        shuffle: bool = True,
        note: str = "",
    ) -> None:
        self._samples, self._data, self._pad_id, self._seed = samples, data, pad_id, seed
        self._order, self._note = EpochOrder(len(samples), seed, shuffle), note
        self.samples_per_epoch = len(samples)

    def describe(self) -> str:
        """What it holds, in half a line."""
        return self._note

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """As `branch_batch` gives it."""
        chosen = [self._samples[place] for place in self._order.of(sample_ids)[1]]
        seed = self._seed if self._order.shuffle else None
        return _batch(chosen, sample_ids, self._data, self._pad_id, seed)


class StreamedBranchSource(Source):
    """Samples in the order of their records, pass after pass; each process reads all of them.

    Records are read in blocks, and what goes together comes out of one block. A place in the stream is then exact: the
    corpus's place before the block, and how many of its samples have been given.

    Args:
        corpus: as `open_branches` gives it; it belongs to the source from now on.
        encode: texts to tokens.
        may_train: whether a record is not held out.
        data: says what goes together.
        pad_id: the padding token.
        seed: of what is drawn.
    """

    samples_per_epoch: int | None = None

    def __init__(
        self,
        corpus: Corpus,
        encode: BranchEncoder,
        may_train: Callable[[BranchedText], bool],
        data: BranchDataSettings,
        *,
        pad_id: int,
        seed: int,
    ) -> None:
        self._corpus, self._encode, self._may_train, self._data = corpus, encode, may_train, data
        self._pad_id, self._seed = pad_id, seed
        self._beginning, self._records = corpus.state_dict(), iter(corpus)
        self._samples: list[BranchSample] = []
        self._block_state: dict[str, Any] = {"records": self._beginning, "block": 0, "is_empty": True}
        self._block, self._given, self._next_sample, self._is_empty = 0, 0, 0, True

    def describe(self) -> str:
        """What it holds, in half a line."""
        return "a stream of main texts and branches"

    def count_samples(self) -> None:
        """Find `samples_per_epoch` by reading all records once; the stream then stands at its beginning."""
        start, total = self.state_dict(), 0
        while not total or self._corpus.state_dict() != self._beginning:
            self._read_block()
            total += len(self._samples)
        self.samples_per_epoch = total
        self.load_state_dict(start)

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """As `branch_batch` gives it; the numbers must rise from call to call.

        Raises:
            DataError: a whole pass over the records gave no sample.
        """
        chosen = []
        for number in sample_ids.tolist():
            for _ in range(number - self._next_sample + 1):
                while self._given == len(self._samples):
                    self._read_block()
                self._given += 1
            chosen.append(self._samples[self._given - 1])
            self._next_sample = number + 1
        return _batch(chosen, sample_ids, self._data, self._pad_id, self._seed)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream and the next sample's number."""
        return {**self._block_state, "given": self._given, "next_sample": self._next_sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place: read its block again."""
        self._corpus.load_state_dict(state["records"])
        self._records, self._block, self._is_empty = iter(self._corpus), state["block"], state["is_empty"]
        self._samples, self._given = [], 0
        if state["given"]:
            self._read_block()
        self._given, self._next_sample = state["given"], state["next_sample"]

    def _read_block(self) -> None:
        self._block_state = {"records": self._corpus.state_dict(), "block": self._block, "is_empty": self._is_empty}
        records = list(islice(self._records, _RECORDS_PER_BLOCK))
        texts = (record[BRANCHED] for record in records)
        samples = encoded((text for text in texts if self._may_train(text)), self._encode)
        self._samples, self._given = list(grouped(samples, self._data, self._seed, self._block * _RECORDS_PER_BLOCK)), 0
        self._block += 1
        self._is_empty = self._is_empty and not self._samples
        if len(records) < _RECORDS_PER_BLOCK:
            if self._is_empty:
                raise DataError("There is nothing to train on: everything is held out, or the data are empty.")
            self._corpus.load_state_dict(self._beginning)
            self._records, self._is_empty = iter(self._corpus), True


def _batch(
    samples: Sequence[BranchSample],
    sample_ids: NDArray[np.int64],
    data: BranchDataSettings,
    pad_id: int,
    seed: int | None,
) -> dict[str, NDArray[np.int64]]:
    layouts = []
    for sample, number in zip(samples, sample_ids, strict=True):
        numbers = None
        if seed is not None:
            keys = random_keys(seed, Purpose.BRANCH_NUMBERS, number)
            places = np.arange(len(sample.branches))
            numbers = (1 + permuted(places, data.most_branches, keys)).tolist()
        layouts.append(branch_layout(sample.main, sample.branches, numbers=numbers, learns_main=data.learn_main))
    return branch_batch(layouts, pad_id)
