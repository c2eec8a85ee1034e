"""Which documents are kept from training: a choice by their text alone, so that equal documents share one fate."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

from fivefold.corpus.duplicates import text_digest
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.data.settings import DataSettings
from fivefold.data.stream import Record
from fivefold.errors import DataError


def is_held_out(text: str, validation_frac: float) -> bool:
    """Whether a document belongs to the held-out share."""
    return text_digest(text) < validation_frac * 2**64


@dataclass
class HeldOut:
    """Records to measure on, and which others may be trained on."""

    records: list[Record]
    may_train: Callable[[str], bool]
    """Given the text of a training record."""


def hold_out(corpus: CorpusSettings, data: DataSettings, fields: tuple[str, ...]) -> HeldOut:
    """Read the validation data, or the held-out share of the training data, as far as it shall be measured on.

    Args:
        corpus: the training data, raw.
        data: says what is held out.
        fields: fields that every record must have; the text in the first one decides.

    Raises:
        DataError: nothing is held out although a share was asked for, or the validation data are blank.
    """
    decisive, most = fields[0], data.validation_documents
    if data.validation_data:
        validation = replace(corpus, data=data.validation_data, data_split=data.validation_split)
        records = list(islice((record for record in open_corpus(validation, fields) if record[decisive].strip()), most))
        if not records:
            raise DataError(f"--validation_data {' '.join(data.validation_data)} holds blank records only.")
        digests = {text_digest(record[decisive]) for record in records}
        return HeldOut(records, lambda text: text_digest(text) not in digests)
    frac = data.validation_frac
    if not frac:
        return HeldOut([], lambda text: True)
    candidates = (record for record in open_corpus(corpus, fields) if record[decisive].strip())
    records = list(islice((record for record in candidates if is_held_out(record[decisive], frac)), most))
    if not records:
        raise DataError(
            f"No document was held out by validation_frac {frac}; give a larger share, --validation_data, or 0 to hold "
            "none out."
        )
    return HeldOut(records, lambda text: not is_held_out(text, frac))
