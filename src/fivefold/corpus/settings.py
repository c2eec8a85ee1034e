"""Which text to read, and how."""

from dataclasses import dataclass, field
from typing import Literal


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
