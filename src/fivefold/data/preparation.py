"""Documents to token shards: read, hold out, tokenise, shuffle, write."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from fivefold.corpus.documents import DocumentReader, DuplicateFilter, ShowProgress
from fivefold.corpus.parallel import in_order
from fivefold.corpus.settings import CleaningSettings, CorpusSettings
from fivefold.data.document_shuffle import DocumentShuffle
from fivefold.data.held_out import is_held_out, text_digest
from fivefold.data.settings import PrepareSettings
from fivefold.data.token_writer import TokenWriter
from fivefold.data.tokens import TRAIN, VALIDATION, TokenIndex
from fivefold.errors import DataError
from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.load import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Prepared:
    """What came of the documents."""

    indexes: dict[str, TokenIndex] = field(default_factory=dict)
    """By the name of the split."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Broken lines, and documents, by reason."""


class SplitWriter:
    """Shuffles the documents of one split into its folder and counts their characters."""

    def __init__(self, folder: Path, settings: PrepareSettings, vocab_size: int):
        """Make the folder."""
        folder.mkdir()
        self._writer = TokenWriter(folder, vocab_size, settings.tokens_per_shard)
        self._shuffle = DocumentShuffle(self._writer.add, settings.shuffle_buffer_tokens, settings.seed)
        self.close = self._writer.close
        self._num_characters = 0

    def add(self, text: str, document: NDArray) -> None:
        """Take one document, as text and as ids."""
        self._shuffle.add(document)
        self._num_characters += len(text)

    def finish(self, fingerprint: str, sources: list[str]) -> TokenIndex:
        """Write what is still held, and the index."""
        self._shuffle.finish()
        return self._writer.finish(
            num_characters=self._num_characters, tokenizer_fingerprint=fingerprint, sources=sources
        )


def prepare_tokens(
    corpus: CorpusSettings,
    settings: PrepareSettings,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    show_progress: ShowProgress = lambda documents: None,
    cleaning: CleaningSettings | None = None,
) -> Prepared:
    """Fill `folder/train` and, unless nothing is held out, `folder/validation` with token shards.

    Differs: T5 takes one random stretch of at most 65,536 tokens from each document; here nothing is left out.

    Args:
        corpus: where the text comes from.
        settings: what to make of it; its tokenizer and output folder play no part here.
        tokenizer: turns text into ids.
        folder: an existing, empty folder.
        show_progress: told of each batch of documents that was read.
        cleaning: what to do to the text before; nothing by default.

    Raises:
        DataError: bad data, nothing to train on, or nothing held out although a share was asked for.
    """
    prepared, encode = Prepared(), CorpusEncoder(tokenizer)
    cleaning = cleaning or CleaningSettings()
    duplicates = DuplicateFilter(cleaning)

    def tokenised(part: CorpusSettings) -> Iterator[tuple[str, NDArray]]:
        reader = DocumentReader(
            part, cleaning, num_workers=settings.num_workers, engine=settings.engine, duplicates=duplicates
        )

        def texts() -> Iterator[list[str]]:
            for documents in reader:
                yield [record[part.text_field] for record in documents.records]
                show_progress(documents)

        for batch, encoded in in_order(texts(), encode, settings.num_workers):
            yield from zip(batch, encoded, strict=True)
        prepared.left_out += reader.left_out

    sources = {TRAIN: corpus.data}
    if settings.validation_data or settings.validation_frac:
        sources[VALIDATION] = settings.validation_data or corpus.data
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    with ExitStack() as stack:
        splits = {
            name: stack.enter_context(closing(SplitWriter(folder / name, settings, vocab_size))) for name in sources
        }
        validation_digests: set[int] = set()
        validation_frac = settings.validation_frac
        if settings.validation_data:
            validation_frac = 0.0
            validation = replace(corpus, data=settings.validation_data, data_split=settings.validation_split)
            for text, document in tokenised(validation):
                validation_digests.add(text_digest(text))
                splits[VALIDATION].add(text, document)
        for text, document in tokenised(corpus):
            if text_digest(text) in validation_digests:
                prepared.left_out["training documents that are in the validation data too"] += 1
            else:
                splits[VALIDATION if is_held_out(text, validation_frac) else TRAIN].add(text, document)
        fingerprint = tokenizer_fingerprint(tokenizer)
        prepared.indexes = {name: split.finish(fingerprint, sources[name]) for name, split in splits.items()}
    _check_not_empty(prepared, settings)
    return prepared


def _check_not_empty(prepared: Prepared, settings: PrepareSettings) -> None:
    num_documents = sum(index.num_documents for index in prepared.indexes.values())
    for name, index in prepared.indexes.items():
        if index.num_tokens:
            continue
        if name == VALIDATION and not settings.validation_data:
            raise DataError(
                f"None of {num_documents:,} documents was held out by validation_frac {settings.validation_frac}; "
                "give a larger share, --validation_data, or 0 to hold none out."
            )
        reasons = "".join(f", {number:,} {reason}" for reason, number in prepared.left_out.items())
        raise DataError(f"There is no text for {name}: {num_documents:,} documents{reasons}.")
