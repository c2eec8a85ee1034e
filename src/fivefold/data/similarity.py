"""How alike two answers are, by the pieces of words and characters that they share."""

import unicodedata
from collections import Counter

_GRAM = 3


def text_similarity(first: str, second: str) -> float:
    """Share of the character trigrams that two texts have in common, of both together.

    Case, width, punctuation and spacing do not count, unless there is nothing else. Word order counts locally only.

    Source: Dice 1945, Measures of the Amount of Ecologic Association Between Species (the coefficient).

    Returns:
        From 0 (nothing shared) to 1 (the same, or very nearly).
    """
    left, right = _trigrams(first), _trigrams(second)
    return 2 * (left & right).total() / (left.total() + right.total())


def _trigrams(text: str) -> Counter[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(character if character.isalnum() else " " for character in folded).split()
    plain = " ".join(words) or folded
    # Blanks around it let the first and the last characters count as often as others, and short texts count at all.
    padded = f"  {plain}  "
    return Counter(padded[start : start + _GRAM] for start in range(len(padded) - _GRAM + 1))
