"""How alike texts are, by numbers counted by hand."""

import pytest

from fivefold.data.similarity import text_similarity


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("Yes, it is.", "yes  it is", 1),
        ("\uff21\uff22\uff23", "abc", 1),  # wide letters
        ("好。", "好", 1),
        ("abc", "xyz", 0),
        ("ab", "ac", 2 * 1 / (4 + 4)),  # of "  a", " ab", "ab ", "b  " and "  a", " ac", "ac ", "c  " one is shared
        ("!?", "!?", 1),  # nothing but punctuation: that is compared
        ("!?", "::", 0),
    ],
)
def test_shared_trigrams(first, second, expected):
    assert text_similarity(first, second) == pytest.approx(expected)
    assert text_similarity(second, first) == pytest.approx(expected)


def test_one_word_of_many_is_near_identical():
    first = "I have read the whole review twice, and I would say that this review is a positive one."
    assert text_similarity(first, first.replace("positive", "negative")) > 0.9
    assert text_similarity("This review is positive.", "This review is negative.") == pytest.approx(
        19 / 25
    )  # 4 letters
