"""Whether a document reads like prose: a few rules that hold for Chinese as for English."""

from collections import Counter
from itertools import pairwise

# Gopher asks for a letter in 80% of the words and for three letters a word at least; of a Chinese text, whose
# characters are words or close to it, about 85% of the characters are letters, of an English one 95%.
LEAST_LETTER_FRAC = 0.6
# A review of one line may well end with three dots.
FEWEST_LINES = 3
MOST_BULLET_FRAC = 0.9
MOST_ELLIPSIS_FRAC = 0.3
MOST_REPEATED_FRAC = 0.2
# The most frequent pair of characters in prose takes 1 to 5%, "hahaha" half.
MOST_ONE_PAIR_FRAC = 0.2
BULLETS = ("-", "*", "\u2022", "\u25cf", "\u25a0", "\u25aa", "\u2023", "\u2043", "\u00b7")
ELLIPSES = ("...", "\u2026")


def why_low_quality(text: str) -> str | None:
    """The first rule that a document breaks, or None.

    Source: Rae et al. 2021 (Gopher), appendix A.1, tables A1 and A2: letters, bullets, ellipses, repeated lines.
    Differs: shares are of characters instead of words, which Chinese does not separate; Gopher's rules on stop words
        and on the length of words are left out for the same reason, and its n-grams are pairs of characters.

    Args:
        text: a document that is not blank.
    """
    characters = "".join(text.split())
    if sum(map(str.isalpha, characters)) < LEAST_LETTER_FRAC * len(characters):
        return "too few letters"
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if len(lines) >= FEWEST_LINES:
        if sum(line.startswith(BULLETS) for line in lines) > MOST_BULLET_FRAC * len(lines):
            return "bullets only"
        if sum(line.endswith(ELLIPSES) for line in lines) > MOST_ELLIPSIS_FRAC * len(lines):
            return "lines that trail off"
    repeated = sum(len(line) * (count - 1) for line, count in Counter(lines).items())
    if repeated > MOST_REPEATED_FRAC * len(text):
        return "repeated lines"
    pairs = Counter(pairwise(characters))
    if pairs and len(characters) >= 10 and max(pairs.values()) > MOST_ONE_PAIR_FRAC * len(characters):
        return "repeated characters"
    return None
