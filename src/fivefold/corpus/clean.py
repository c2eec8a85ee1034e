"""Clean documents: normalise, then leave out what is too short, too long, no prose or in another language."""

import json
import unicodedata
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from fivefold.corpus.duplicates import Signature, signatures, text_digest
from fivefold.corpus.quality import why_low_quality
from fivefold.corpus.settings import CleaningSettings
from fivefold.corpus.wiki import Wikitext
from fivefold.errors import ConfigError

# The slowest filter by far: a millisecond for 1,000 Chinese characters.
LANGUAGE_CHARACTERS = 400
# A longer line is a paragraph that happens to hold the phrase.
BOILERPLATE_CHARACTERS = 100


class CleanText(NamedTuple):
    """What became of a document."""

    text: str
    reason: str | None = None
    """Why it is left out, if it is."""
    digest: int = 0
    """For finding equal documents, if asked for."""
    signature: Signature | None = None
    """For finding near ones, if asked for."""


@dataclass(frozen=True)
class Cleaner:
    """The filters that look at one document alone, to run in any process: texts to clean texts.

    Args:
        settings: which filters.
    """

    settings: CleaningSettings

    def __call__(self, texts: list[str]) -> list[CleanText]:
        """Clean texts, in order; those of MediaWiki dumps are freed of their markup first."""
        cleaned = [clean_text(text, self.settings) for text in texts]
        if self.settings.deduplicate == "none":
            return cleaned
        cleaned = [one if one.reason else one._replace(digest=text_digest(one.text)) for one in cleaned]
        if self.settings.deduplicate == "exact":
            return cleaned
        found = iter(signatures([one.text for one in cleaned if not one.reason], self.settings.near_threshold))
        return [one if one.reason else one._replace(signature=next(found)) for one in cleaned]


def clean_text(text: str, settings: CleaningSettings) -> CleanText:
    """One document through the filters that are asked for; with none, it stays as it is."""
    if isinstance(text, Wikitext):
        text = text.plain_text()
    if settings.normalise != "none":
        text = unicodedata.normalize("NFC" if settings.normalise == "nfc" else "NFKC", text)
    if settings.simplified:
        text = to_simplified(text)
    if settings.drop_boilerplate:
        text = without_boilerplate(text)
    return CleanText(text, why_left_out(text, settings))


def why_left_out(text: str, settings: CleaningSettings) -> str | None:
    """The first reason to leave a document out, or None."""
    if not text.strip():
        return "blank"
    if len(text) < settings.min_characters:
        return "too short"
    if settings.max_characters is not None and len(text) > settings.max_characters:
        return "too long"
    if settings.quality and (reason := why_low_quality(text)):
        return reason
    if settings.language and not is_in(text, settings.language):
        return "in another language"
    return None


def to_simplified(text: str) -> str:
    """Simplified Chinese for Traditional, character by character and phrase by phrase; the rest stays."""
    return _converter().convert(text)


@cache
def _converter() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")


def without_boilerplate(text: str) -> str:
    """The text without short lines that hold a phrase of web pages' frames.

    Source: Raffel et al. 2020 (C4), section 2.2: "javascript", "terms of use", "privacy policy", "cookie policy".
    Differs: C4 drops longer lines, too, and has no Chinese phrases.
    """
    return "\n".join(
        line
        for line in text.split("\n")
        if len(line) > BOILERPLATE_CHARACTERS or not any(phrase in line.lower() for phrase in _boilerplate())
    )


@cache
def _boilerplate() -> list[str]:
    return json.loads(resources.files("fivefold.corpus").joinpath("boilerplate.json").read_text(encoding="utf-8"))


def language(text: str) -> str:
    """The language of a text by its first 400 characters, as an ISO 639-1 code."""
    import py3langid

    return py3langid.classify(text[:LANGUAGE_CHARACTERS])[0]


def is_in(text: str, codes: list[str]) -> bool:
    """Whether a text is in one of these languages; zh takes Wu and Cantonese along.

    Of 17,363 reviews in Mandarin, most of one sentence, py3langid takes 1.1% for one of these two and 0.1% for others.
    """
    found = language(text)
    return found in codes or (found in ("wuu", "yue") and "zh" in codes)


def check_languages(codes: list[str]) -> None:
    """Refuse languages that nobody would be found in.

    Raises:
        ConfigError: a code that py3langid does not know.
    """
    if not codes:
        return
    import py3langid

    known = sorted(code for code, _ in py3langid.rank(""))
    if unknown := [code for code in codes if code not in known]:
        raise ConfigError(f"language {unknown[0]!r} is none that py3langid knows: {' '.join(known)}.")
