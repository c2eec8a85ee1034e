"""A corpus in batches of records, cleaned in this process or in several of this machine."""

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from fivefold.corpus.clean import Cleaner, CleanText
from fivefold.corpus.files import Record
from fivefold.corpus.parallel import in_order
from fivefold.corpus.read import Corpus

# Small enough that workers share a short corpus, large enough that handing it over costs little.
BATCH_CHARACTERS = 1 << 18
BATCH_RECORDS = 1000


class Batch(NamedTuple):
    """Records of one file or data set."""

    records: list[Record]
    reader: dict[str, Any]
    """State of the corpus behind them."""


def read_batches(corpus: Corpus) -> Iterator[Batch]:
    """Records in batches; the last one of a file may be empty."""
    text_field = corpus.settings.text_field
    for part in corpus.by_part():
        batch: list[Record] = []
        characters = 0
        for record in part:
            batch.append(record)
            characters += len(record[text_field])
            if characters >= BATCH_CHARACTERS or len(batch) == BATCH_RECORDS:
                yield Batch(batch, corpus.state_dict())
                batch, characters = [], 0
        yield Batch(batch, corpus.state_dict())


def clean_batches(corpus: Corpus, clean: Cleaner, num_workers: int) -> Iterator[tuple[Batch, list[CleanText]]]:
    """Batches with what became of their texts, in order.

    Args:
        corpus: where the text comes from.
        clean: what to do to texts.
        num_workers: processes that do it; 0 for this one.
    """
    waiting: deque[Batch] = deque()

    def texts() -> Iterator[list[str]]:
        for batch in read_batches(corpus):
            waiting.append(batch)
            yield [record[corpus.settings.text_field] for record in batch.records]

    for _, cleaned in in_order(texts(), clean, num_workers):
        yield waiting.popleft(), cleaned
