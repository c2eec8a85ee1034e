"""Documents to token shards: read, hold out, tokenise, shuffle, write."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from fivefold.corpus.read import Corpus, open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.document_shuffle import DocumentShuffle
from fivefold.data.held_out import is_held_out, text_digest
from fivefold.data.parallel_encoding import encoded
from fivefold.data.settings import PrepareSettings
from fivefold.data.token_writer import TokenWriter
from fivefold.data.tokens import TRAIN, VALIDATION, TokenIndex
from fivefold.errors import DataError
from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.load import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TEXTS_PER_BATCH = 1000


@dataclass
class Prepared:
    """What came of the documents."""

    indexes: dict[str, TokenIndex] = field(default_factory=dict)
    """By the name of the split."""
    num_bad_lines: int = 0
    num_blank: int = 0
    num_left_out: int = 0
    """Training documents left out because a validation document has the same text."""


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
    show_progress: Callable[[int], None] = lambda num_documents: None,
) -> Prepared:
    """Fill `folder/train` and, unless nothing is held out, `folder/validation` with token shards.

    Differs: T5 takes one random stretch of at most 65,536 tokens from each document; here nothing is left out.

    Args:
        corpus: where the text comes from.
        settings: what to make of it; its tokenizer and output folder play no part here.
        tokenizer: turns text into ids.
        folder: an existing, empty folder.
        show_progress: told how many documents more have been tokenised.

    Raises:
        DataError: bad data, nothing to train on, or nothing held out although a share was asked for.
    """
    prepared, encode = Prepared(), CorpusEncoder(tokenizer)

    def tokenised(part: CorpusSettings) -> Iterator[tuple[str, NDArray]]:
        reader = open_corpus(part)
        batches = _batches(reader, part.text_field, prepared)
        for texts, documents in encoded(batches, encode, settings.num_workers):
            yield from zip(texts, documents, strict=True)
            show_progress(len(texts))
        prepared.num_bad_lines += reader.state_dict()["bad_lines"]

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
                prepared.num_left_out += 1
            else:
                splits[VALIDATION if is_held_out(text, validation_frac) else TRAIN].add(text, document)
        fingerprint = tokenizer_fingerprint(tokenizer)
        prepared.indexes = {name: split.finish(fingerprint, sources[name]) for name, split in splits.items()}
    _check_not_empty(prepared, settings)
    return prepared


def _batches(reader: Corpus, text_field: str, prepared: Prepared) -> Iterator[list[str]]:
    batch: list[str] = []
    for record in reader:
        if not record[text_field].strip():
            prepared.num_blank += 1
            continue
        batch.append(record[text_field])
        if len(batch) == _TEXTS_PER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


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
        raise DataError(f"There is no text for {name}: {num_documents:,} documents, {prepared.num_blank:,} blank.")
