"""Which text to read, and how."""

from dataclasses import dataclass, field
from typing import Literal

from fivefold.choices import refuse_unused
from fivefold.errors import ConfigError


@dataclass
class CorpusSettings:
    """Where the text comes from."""

    data: list[str] = field(default_factory=list)
    """Files, folders, globs, catalogue names or Hub ids, read in this order. Only pretrain goes without: it then takes
    c4_en, C4's English pages."""
    data_config: str | None = None
    """Configuration of the Hub data sets in --data, such as a language; catalogue names bring their own."""
    data_split: str = "train"
    """Split of the Hub data sets in --data."""
    text_field: str = "text"
    """Field of a JSON, Parquet or Hub record that holds its text."""
    text_unit: Literal["line", "paragraph", "file"] = "line"
    """What one document is in a plain text file; paragraphs end at blank lines."""
    max_bad_lines: int = 0
    """Broken lines to skip, each reported with file and line, before stopping with an error."""
    streaming: bool = True
    """Read Hub data sets over the network as they come, instead of downloading them whole first."""


@dataclass
class CleaningSettings:
    """What is done to documents, and which are left out, in this order; all of it is off unless asked for."""

    normalise: Literal["none", "nfc", "nfkc"] = "none"
    """Unicode form of the text; nfkc also turns full-width letters, digits and punctuation into ordinary ones."""
    simplified: bool = False
    """Turn Traditional Chinese characters into Simplified ones (OpenCC)."""
    drop_boilerplate: bool = False
    """Drop short lines with a phrase of web pages' frames, such as "cookie policy"."""
    min_characters: int = 1
    """Fewest characters of a document."""
    max_characters: int | None = None
    """Most characters of a document."""
    quality: bool = False
    """Leave out what does not read like prose: few letters, bullets only, lines that trail off or repeat."""
    language: list[str] = field(default_factory=list)
    """Languages to keep, such as zh or en, as py3langid tells them by the first 400 characters."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Leave out documents equal to an earlier one (exact), or nearly so as well (near)."""
    near_threshold: float = field(default=0.8, metadata={"deduplicate": ("near",)})
    """Share of common stretches of five characters (Jaccard) from which documents are near, for --deduplicate near."""

    def __post_init__(self) -> None:
        """Check the numbers and codes, and that none is set that has no use."""
        if self.min_characters < 1:
            raise ConfigError(f"min_characters is {self.min_characters}; give a whole number of at least 1.")
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ConfigError(
                f"max_characters is {self.max_characters} and min_characters {self.min_characters}: no document can be "
                "both; raise the first or lower the second."
            )
        if not 0.3 <= self.near_threshold <= 1:
            raise ConfigError(f"near_threshold is {self.near_threshold}; give a share from 0.3 to 1, such as 0.8.")
        refuse_unused(self, "deduplicate")

    @property
    def is_active(self) -> bool:
        """Whether anything is asked for."""
        return self != CleaningSettings()
