"""Raw records to clean documents: read, filter in several processes, leave out duplicates, in a fixed order."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple, TypeAlias

from fivefold.corpus.batches import clean_batches
from fivefold.corpus.clean import Cleaner, CleanText
from fivefold.corpus.duplicates import NearDuplicates
from fivefold.corpus.files import Record, file_kind
from fivefold.corpus.hub import HubDataset
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CleaningSettings, CorpusSettings

Engine: TypeAlias = Literal["local", "ray"]


class Documents(NamedTuple):
    """Clean records, and where reading stood behind them."""

    records: list[Record]
    """Their text is clean; other fields are as they were read."""
    fingerprints: list[CleanText]
    """By record, what duplicates are found by."""
    reader: dict[str, Any]
    """State of the corpus, to go on behind these."""
    left_out: Counter[str]
    """How many documents were left out up to here, by reason."""
    documents_read: int
    """In this batch, as the following."""
    bytes_read: int
    """Size of the texts before cleaning, markup included."""
    read_frac: float | None
    """How much of the data was read, as far as that can be told."""


ShowProgress: TypeAlias = Callable[[Documents], None]
"""Told of each batch."""


class DuplicateFilter:
    """Remembers documents, to tell which come again.

    Args:
        settings: what counts as the same.

    Cost: with `exact` about 70 bytes a document, with `near` some 500 more.
    """

    def __init__(self, settings: CleaningSettings) -> None:
        self._digests: set[int] = set()
        self._near = NearDuplicates(settings.near_threshold) if settings.deduplicate == "near" else None
        self._is_active = settings.deduplicate != "none"

    def why_left_out(self, document: CleanText) -> str | None:
        """The reason to leave a document out; if there is none, it is remembered."""
        if document.reason or not self._is_active:
            return document.reason
        if document.digest in self._digests:
            return "equal to an earlier one"
        if self._near is not None and document.signature and not self._near.add_new(document.signature):
            return "nearly equal to an earlier one"
        self._digests.add(document.digest)
        return None


class DocumentReader:
    """Clean documents out of a corpus, the same ones in the same order whatever the number of workers.

    Args:
        corpus: where the text comes from.
        cleaning: what to do to it.
        num_workers: processes that clean; 0 cleans in this one.
        engine: local, or ray for a cluster.
        duplicates: what was met before, where that counts.
    """

    def __init__(
        self,
        corpus: CorpusSettings,
        cleaning: CleaningSettings,
        *,
        num_workers: int = 0,
        engine: Engine = "local",
        duplicates: DuplicateFilter | None = None,
    ) -> None:
        self._corpus, self._text_field = open_corpus(corpus, keep_markup=True), corpus.text_field
        has_markup = any(not isinstance(part, HubDataset) and file_kind(part) == "wiki" for part in self._corpus.parts)
        self._clean, self._engine = Cleaner(cleaning), engine
        self._num_workers = num_workers if cleaning.is_active or has_markup else 0
        self._duplicates = duplicates or DuplicateFilter(cleaning)
        self._left_out = Counter[str]()
        self._reader = self._corpus.state_dict()

    @property
    def left_out(self) -> Counter[str]:
        """What is no document or was left out so far, by reason."""
        counts = Counter(self._reader["left_out"]) + Counter({"broken lines": self._reader["bad_lines"]})
        return self._left_out + counts

    def go_on(self, reader: dict[str, Any], left_out: dict[str, int]) -> None:
        """Begin behind documents that were given earlier; `duplicates` must know them.

        Raises:
            CheckpointError: the data are others by now.
        """
        self._corpus.load_state_dict(reader)
        self._left_out.update(left_out)

    def __iter__(self) -> Iterator[Documents]:
        if self._engine == "ray":
            from fivefold.corpus.ray_engine import clean_batches_with_ray

            batches = clean_batches_with_ray(self._corpus, self._clean)
        else:
            batches = clean_batches(self._corpus, self._clean, self._num_workers)
        for (records, reader), cleaned in batches:
            kept: list[Record] = []
            fingerprints: list[CleanText] = []
            for record, document in zip(records, cleaned, strict=True):
                if reason := self._duplicates.why_left_out(document):
                    self._left_out[reason] += 1
                else:
                    kept.append(record | {self._text_field: document.text})
                    fingerprints.append(document)
            self._reader = reader
            bytes_read = sum(len(record[self._text_field].encode("utf-8", "surrogatepass")) for record in records)
            read_frac = None if self._engine == "ray" else self._corpus.read_frac
            yield Documents(kept, fingerprints, reader, self._left_out.copy(), len(records), bytes_read, read_frac)
