"""Which documents are kept from training: a choice by their text alone, so that equal documents share one fate."""

from hashlib import blake2b


def text_digest(text: str) -> int:
    """A 64-bit hash of a text, the same on every machine and in every run."""
    # A surrogate left over from broken JSON escapes cannot be encoded strictly, and need not be here.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def is_held_out(text: str, validation_frac: float) -> bool:
    """Whether a document belongs to the held-out share."""
    return text_digest(text) < validation_frac * 2**64
