"""From text to the stretches within which pieces are learned, and back, losing nothing but what NFKC folds.

NFKC is that of the Unicode version in the tokenizers library, which is older than Python's: some dozens of characters
that came later, modifier letters and squared words, stay as they are.

A space becomes the visible mark U+2581, as in SentencePiece. A U+2581 that stands in the text itself is written as two
noncharacters meanwhile, and so is the first of these, which makes the way back unique.
"""

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

SPACE_MARK = "\u2581"
ESCAPE = "\ufdd0"
ESCAPED = {ESCAPE: ESCAPE + "\ufdd1", SPACE_MARK: ESCAPE + "\ufdd2"}
"""What stands for a character that has another meaning here: noncharacters, which text in interchange never holds."""


def build_normalizer() -> normalizers.Normalizer:
    """NFKC, with the space mark freed for its own use."""
    escapes = [normalizers.Replace(character, escaped) for character, escaped in ESCAPED.items()]
    return normalizers.Sequence([normalizers.NFKC(), *escapes])


def build_pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    """Split off line breaks and tabs, punctuation, and each digit alone; put each space in front of what follows it."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[^\S ]+"), "isolated"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Metaspace(SPACE_MARK, prepend_scheme="never"),
        ]
    )


def build_decoder() -> decoders.Decoder:
    """The inverse of normalizer and pre-tokenizer."""
    unescapes = [decoders.Replace(escaped, character) for character, escaped in reversed(ESCAPED.items())]
    return decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(SPACE_MARK, " "), *unescapes])
