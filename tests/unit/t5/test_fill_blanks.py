"""The order of an answer, score by score."""

import torch

from fivefold.t5.fill_blanks import BlanksInOrder, fill_in, has_blanks

PAD, EOS, WORD, SENTINELS = 0, 1, 2, torch.tensor([9, 8, 7])


def _allowed(tokens, num_blanks=2, scores=None):
    processor = BlanksInOrder(SENTINELS, torch.tensor([num_blanks]), EOS, torch.tensor([PAD]))
    scores = torch.zeros(1, 10) if scores is None else scores
    return processor(torch.tensor([tokens]), scores)[0]


def _ids(scores):
    return set(scores.isfinite().nonzero().flatten().tolist())


def test_an_answer_begins_with_the_first_sentinel():
    assert _ids(_allowed([PAD])) == {9}


def test_a_blank_gets_at_least_one_word():
    assert _ids(_allowed([PAD, 9])) == {2, 3, 4, 5, 6}


def test_only_the_next_sentinel_may_follow_and_the_end_only_after_the_last():
    assert _ids(_allowed([PAD, 9, WORD])) == {2, 3, 4, 5, 6, 8}
    assert _ids(_allowed([PAD, 9, WORD, 8, WORD])) == {1, 2, 3, 4, 5, 6}


def test_wanting_another_gap_after_the_last_blank_is_wanting_to_end():
    scores = torch.zeros(1, 10)
    scores[0, 7] = 5.0
    out = _allowed([PAD, 9, WORD, 8, WORD], scores=scores)
    assert int(out.argmax()) == EOS
    assert scores[0, EOS] == 0.0  # the model's own scores stay as they are


def test_blanks_are_underscores_or_sentinels_and_too_few_words_leave_blanks():
    assert has_blanks("a ___ b")
    assert has_blanks("a <extra_id_0> b")
    assert not has_blanks("a __ b")
    assert fill_in("a ___ b ____ c", ["x"]) == "a x b ____ c"
