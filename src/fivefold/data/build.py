"""From settings to sources: what to train on and what to measure on."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import NDArray

from fivefold.choices import refuse_changed
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.corruption import SpanCorruption, build_corruption, padding_id, special_id
from fivefold.data.documents import DocumentSource
from fivefold.data.examples import PackedSource
from fivefold.data.held_out import hold_out
from fivefold.data.packing import balanced_length
from fivefold.data.pairs import PairSource
from fivefold.data.settings import DataSettings, ObjectiveSettings
from fivefold.data.source import Source
from fivefold.data.stream import Record, StreamSource, TokenStream
from fivefold.data.tokens import INDEX_NAME, TOKENIZER, TRAIN, VALIDATION, TokenIndex, TokenShards
from fivefold.data.windows import WindowSource
from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.load import load_tokenizer, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EVALUATION_SEED = 0x5EED
"""Held-out data always get the same noise, whatever the run's seed, so that the losses of different runs compare."""

_RECORDS_PER_BATCH = 1000


def open_tokenizer(
    corpus: CorpusSettings, data: DataSettings, *, is_offline: bool = False
) -> "PreTrainedTokenizerBase":
    """The tokenizer that `--tokenizer` names, else the one that a prepared folder brings.

    Args:
        corpus: may name a prepared folder.
        data: may name a tokenizer.
        is_offline: of the Hub's tokenizers, only what is on this machine already.

    Raises:
        ConfigError: neither is there.
        DataError: it cannot be read, or it is not the one that made the tokens.
    """
    folder = prepared_folder(corpus)
    if folder is None:
        if data.tokenizer is None:
            raise ConfigError(
                "--tokenizer is missing: text needs one; only what `fivefold prepare` made brings its own."
            )
        return load_tokenizer(data.tokenizer, is_offline=is_offline)
    tokenizer = load_tokenizer(data.tokenizer or folder / TOKENIZER, is_offline=is_offline)
    if tokenizer_fingerprint(tokenizer) != TokenIndex.load(folder / TRAIN).tokenizer_fingerprint:
        raise DataError(
            f"{folder} was prepared with another tokenizer than {data.tokenizer or folder / TOKENIZER}; leave "
            "--tokenizer out to use the one in the folder, or prepare the text again."
        )
    return tokenizer


def build_sources(
    corpus: CorpusSettings,
    data: DataSettings,
    objective: ObjectiveSettings,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
) -> tuple[Source, Source | None]:
    """Open what to train on and what to measure the held-out loss on.

    A text that is held out is never trained on, except where the tokens were prepared apart from --validation_data.

    Args:
        corpus: a prepared folder, or raw text or records.
        data: how they become training data.
        objective: what becomes of them.
        tokenizer: from `open_tokenizer`.
        seed: the run's seed.

    Returns:
        The training source, and the validation source (`samples_per_epoch` samples, always with the same noise) or
        None, where nothing is held out.

    Raises:
        ConfigError, DataError: settings or data that do not work.
    """
    check_data(corpus, data, objective)
    data = data.for_objective(objective.objective)
    if objective.objective == "seq2seq":
        return _pair_sources(corpus, data, objective, tokenizer, seed)
    return _text_sources(corpus, data, objective, tokenizer, seed)


def check_data(corpus: CorpusSettings, data: DataSettings, objective: ObjectiveSettings) -> None:
    """Refuse settings that do not go together or that would change nothing; no data are read.

    Raises:
        ConfigError: one of these.
    """
    data, folder = data.for_objective(objective.objective), prepared_folder(corpus)
    name = f"--objective {objective.objective or 'span'}"
    for other in data.validation_data:
        if _is_prepared(Path(other).expanduser()):
            raise ConfigError(f"--validation_data names {other}, which is prepared; give text, or use it as --data.")
    if objective.objective == "seq2seq":
        if folder:
            raise ConfigError(f"{name} needs prompts and responses, but {folder} holds prepared text.")
        refuse_changed(data, ("append_eos_to_documents", "shuffle_documents"), f"with {name}")
        refuse_changed(
            corpus, ("text_field", "text_unit"), f"with {name}, which reads --prompt_field and --response_field"
        )
        return
    refuse_changed(data, ("prompt_field", "response_field"), f"with {name}")
    if folder:
        unused = ("validation_frac", "shuffle_documents", *(() if data.validation_data else ("validation_documents",)))
        refuse_changed(data, unused, f"with {folder}, which is prepared")
        if not data.validation_data:
            refuse_changed(corpus, ("text_field", "text_unit"), f"with {folder}, which is prepared")
    if not data.packing:
        return
    if objective.objective == "causal":
        raise ConfigError("packing would change nothing with --objective causal, whose rows are full; leave it out.")
    if objective.objective == "prefix":
        raise ConfigError(
            "--packing has to know how long inputs and targets are, but --objective prefix cuts texts at random; "
            "leave it out, or give --objective span or ul2."
        )
    if not folder:
        raise ConfigError(
            f"--packing has to know how long all documents are, but {' '.join(corpus.data)} is read as training goes; "
            "run `fivefold prepare` and give its folder as --data."
        )
    if data.append_eos_to_documents:
        raise ConfigError(
            "append_eos_to_documents would change nothing with --packing, where every document has an end mark; leave "
            "it out."
        )


def prepared_folder(corpus: CorpusSettings) -> Path | None:
    """The folder made by `fivefold prepare` that `--data` names, if it names one.

    Raises:
        ConfigError: it names something else besides.
    """
    folders = [path for name in corpus.data if _is_prepared(path := Path(name).expanduser())]
    if folders and len(corpus.data) > 1:
        raise ConfigError(f"--data names {folders[0]}, which is prepared, and more; prepare all of it in one folder.")
    return folders[0] if folders else None


def _is_prepared(folder: Path) -> bool:
    return (folder / TRAIN / INDEX_NAME).is_file()


def _text_sources(
    corpus: CorpusSettings,
    data: DataSettings,
    objective: ObjectiveSettings,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
) -> tuple[Source, Source | None]:
    folder, pad_id = prepared_folder(corpus), padding_id(tokenizer, objective)
    mark = special_id(tokenizer, "eos_token") if data.append_eos_to_documents else None
    encode, text_field = CorpusEncoder(tokenizer), corpus.text_field
    validation_tokens = None
    if folder and not data.validation_data:
        may_train = None
        if (folder / VALIDATION).is_dir():
            validation_tokens = TokenShards.open(folder / VALIDATION, mark)
    else:
        held_out = hold_out(corpus, data, (text_field,))
        may_train = held_out.may_train
        if held_out.records:
            documents = encode([record[text_field] for record in held_out.records])
            validation_tokens = TokenShards.of_documents(documents, mark)

    def encode_training(records: list[Record]) -> list[NDArray]:
        texts = [record[text_field] for record in records]
        return encode([text for text in texts if text.strip() and (may_train is None or may_train(text))])

    def source_of(tokens: TokenShards, seed: int, shuffle: bool) -> Source:
        corruption = build_corruption(objective, tokenizer, seed)
        if not data.packing:
            return WindowSource(tokens, corruption, pad_id=pad_id, seed=seed, shuffle=shuffle)
        assert isinstance(corruption, SpanCorruption)
        # Shuffled in any case: rows stand in the order of their longest document.
        documents = DocumentSource(tokens, corruption, pad_id=pad_id, seed=seed)
        input_length = objective.sample_length
        target_length = objective.target_length or balanced_length(documents.lengths, input_length)
        return PackedSource(documents, (input_length, target_length))

    if folder:
        training = source_of(TokenShards.open(folder / TRAIN, mark), seed, shuffle=True)
    else:
        block_size = data.shuffle_documents
        stream = TokenStream(
            open_corpus(corpus), encode_training, block_size=block_size, shuffle=block_size > 1, seed=seed, eos_id=mark
        )
        training = StreamSource(stream, build_corruption(objective, tokenizer, seed), pad_id=pad_id)
    if validation_tokens is None:
        return training, None
    return training, source_of(validation_tokens, EVALUATION_SEED, shuffle=False)


def _pair_sources(
    corpus: CorpusSettings,
    data: DataSettings,
    objective: ObjectiveSettings,
    tokenizer: "PreTrainedTokenizerBase",
    seed: int,
) -> tuple[Source, Source | None]:
    fields = (data.prompt_field, data.response_field)
    held_out, encode = hold_out(corpus, data, fields), CorpusEncoder(tokenizer)
    eos_id, pad_id = special_id(tokenizer, "eos_token"), special_id(tokenizer, "pad_token")
    row = (objective.sample_length, objective.target_length or objective.sample_length)

    def pair_source(records: Iterable[Record], source_seed: int, shuffle: bool) -> PairSource:
        sides: tuple[list[NDArray], list[NDArray]] = ([], [])
        remaining = iter(records)
        while batch := list(islice(remaining, _RECORDS_PER_BATCH)):
            for side, name in zip(sides, fields, strict=True):
                side.extend(encode([record[name] for record in batch]))
        if not sides[0]:
            raise DataError("There are no pairs to train on: everything is held out, or the data are empty.")
        return PairSource(
            *sides,
            input_length=row[0],
            target_length=row[1],
            eos_id=eos_id,
            pad_id=pad_id,
            seed=source_seed,
            shuffle=shuffle,
        )

    records = open_corpus(corpus, fields)
    pairs = pair_source((record for record in records if held_out.may_train(record[fields[0]])), seed, shuffle=True)
    training = PackedSource(pairs, row) if data.packing else pairs
    if not held_out.records:
        return training, None
    # Padded: runs with and without packing are measured on the same pairs.
    return training, pair_source(held_out.records, EVALUATION_SEED, shuffle=False)
