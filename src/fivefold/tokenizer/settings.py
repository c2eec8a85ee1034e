"""How a tokenizer is trained, and what it holds."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class TokenizerSettings:
    """The tokenizer to make."""

    output_dir: str
    """Folder to write the tokenizer to."""
    vocab_size: int = 32_000
    """Size of the vocabulary, with special tokens, the 256 bytes and the sentinels."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """How pieces are learned: byte pair encoding, or a unigram language model (about ten times slower to train)."""
    max_length: int = 512
    """Longest model input in tokens; sets how many sentinels there are, enough for any of the UL2 denoisers."""
    num_sentinels: int | None = None
    """Number of sentinels, in place of the one that follows from --max_length."""
    extra_special_tokens: list[str] = field(default_factory=lambda: ["[NLU]", "[NLG]", "[S2S]"])
    """Further special tokens; by default those by which UL2 tells its denoisers apart."""
    character_coverage: float = 0.9995
    """Fraction of the text's characters that get a piece of their own; rarer ones are spelled in bytes."""
    sample_characters: int = 6_000_000
    """Characters to train on, an unbiased sample of all that is read; memory is about 170 bytes for each."""
    read_characters: int = 2_000_000_000
    """Characters to read at most, so that a stream without end comes to one."""
    seed: int = 0
    """Seed of the sample."""
