"""The tokenizer of a stage, as far as a dry run can have it."""

from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import HUB_ID, check_sources
from fivefold.data.build import open_tokenizer, prepared_folder
from fivefold.data.settings import DataSettings
from fivefold.errors import DataError


def open_tokenizer_unless_on_hub(
    corpus: CorpusSettings, data: DataSettings, dry_run: bool
) -> tuple[PreTrainedTokenizerBase | None, list[str]]:
    """The tokenizer, and the Hub ids nobody has looked up; a dry run asks no network, and may find no tokenizer."""
    is_prepared = prepared_folder(corpus) is not None
    unchecked = [] if is_prepared else check_sources(corpus)
    if data.validation_data:
        unchecked += check_sources(replace(corpus, data=data.validation_data))
    try:
        return open_tokenizer(corpus, data, is_offline=dry_run), unchecked
    except DataError:
        name = data.tokenizer or ""
        if not dry_run or is_prepared or Path(name).expanduser().exists() or not HUB_ID.fullmatch(name):
            raise
        return None, [*unchecked, name]
