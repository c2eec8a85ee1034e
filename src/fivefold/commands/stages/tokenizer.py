"""The tokenizer of a stage, as far as a dry run can have it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import HUB_ID, check_sources
from fivefold.data.build import open_tokenizer, prepared_folder
from fivefold.data.record_shapes import check_record_settings
from fivefold.data.settings import DataSettings, DialogueSettings
from fivefold.errors import ConfigError, DataError
from fivefold.models.settings import ModelSettings
from fivefold.tokenizer.chat_format import ChatFormat
from fivefold.tokenizer.load import load_tokenizer


def open_tokenizer_unless_on_hub(
    corpus: CorpusSettings, data: DataSettings, dry_run: bool
) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    """The tokenizer, and the Hub ids nobody has looked up; a dry run asks no network, and may find no tokenizer."""
    is_prepared = prepared_folder(corpus) is not None
    unchecked = [] if is_prepared else check_sources(corpus)
    if data.validation_data:
        unchecked += check_sources(replace(corpus, data=data.validation_data))
    name = "" if is_prepared else data.tokenizer or ""
    tokenizer = _unless_on_hub(lambda: open_tokenizer(corpus, data, is_offline=dry_run), name, dry_run)
    return tokenizer, unchecked if tokenizer is not None else [*unchecked, name]


def chat_format_unless_on_hub(
    corpus: CorpusSettings, data: DialogueSettings, model: ModelSettings, dry_run: bool, *, reads_text: bool = False
) -> tuple[ChatFormat | None, list[str]]:
    """How a model's conversations are written, and the Hub ids nobody has looked up, as above.

    Args:
        model: as `resolve_model` returns it.
        reads_text: whether a decoder can learn plain text, too.

    Raises:
        ConfigError: no data, no tokenizer, prepared text, or another template than the tokenizer's own.
        DataError: data or a tokenizer that are not there.
    """
    if not corpus.data:
        raise ConfigError("--data is missing: name conversations, such as zh_instructions or a file of your own.")
    if not (reads_text and model.model_type == "llama"):
        check_record_settings(corpus)
    if (folder := prepared_folder(corpus)) is not None:
        raise ConfigError(f"--data names {folder}, which holds prepared text; give conversations.")
    name = data.tokenizer or model.model
    if name is None:
        raise ConfigError("--tokenizer is missing: a fresh model brings none; or give a trained --model.")
    assert model.model_type is not None
    unchecked = check_sources(corpus)
    split = data.validation_split if data.validation_split and not data.validation_data else corpus.data_split
    if not unchecked and split != CorpusSettings().data_split:
        raise ConfigError(f"--data {' '.join(corpus.data)} has no splits such as {split}; name files for each use.")
    if data.validation_data:
        unchecked += check_sources(replace(corpus, data=data.validation_data))
    tokenizer = _unless_on_hub(lambda: load_tokenizer(name, is_offline=dry_run), name, dry_run)
    if tokenizer is None:
        return None, [*unchecked, name]
    return ChatFormat(tokenizer, model.model_type, data.chat_template), unchecked


def raw_tokenizer_unless_on_hub(
    corpus: CorpusSettings, validation_data: list[str], name: str | None, dry_run: bool
) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    """The tokenizer of texts that no template changes, and the Hub ids nobody has looked up, as above.

    Raises:
        ConfigError: no data, no tokenizer, or prepared text.
        DataError: data or a tokenizer that are not there.
    """
    if not corpus.data:
        raise ConfigError("--data is missing: name a file of main texts with branches, or of texts.")
    if (folder := prepared_folder(corpus)) is not None:
        raise ConfigError(f"--data names {folder}, which holds prepared text; give the texts themselves.")
    if name is None:
        raise ConfigError("--tokenizer is missing: a fresh model brings none; or give a trained --model.")
    unchecked = check_sources(corpus)
    if validation_data:
        unchecked += check_sources(replace(corpus, data=validation_data))
    tokenizer = _unless_on_hub(lambda: load_tokenizer(name, is_offline=dry_run), name, dry_run)
    return tokenizer, unchecked if tokenizer is not None else [*unchecked, name]


def _unless_on_hub(
    load: Callable[[], PreTrainedTokenizerBase], name: str, dry_run: bool
) -> PreTrainedTokenizerBase | None:
    try:
        return load()
    except DataError:
        if not dry_run or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
            raise
        return None
