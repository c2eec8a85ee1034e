"""SuperGLUE's official metrics, in percent; an answer outside the label set is wrong in all of them.

Source: Wang et al. 2019, arXiv:1905.00537, table 1; words: Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
"""

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence

from fivefold.evaluation.superglue.example import Verdict

Metric = Callable[[Sequence[Verdict]], float]


def accuracy(verdicts: Sequence[Verdict]) -> float:
    """Share of right answers."""
    return _percent([verdict.is_right for verdict in verdicts])


def macro_f1(verdicts: Sequence[Verdict]) -> float:
    """F1 of each label, the mean over the labels that there are."""
    labels = verdicts[0].example.choices
    return sum(_f1(verdicts, label) for label in labels) / len(labels)


def positive_f1(verdicts: Sequence[Verdict]) -> float:
    """F1 of the label True over all answers (F1a of MultiRC)."""
    return _f1(verdicts, "True")


def matthews(verdicts: Sequence[Verdict]) -> float:
    """Matthews' correlation of two labels; 0 where a row or a column of their table is empty."""
    yes, no = verdicts[0].example.choices
    cells = Counter((verdict.example.gold[0], _counted(verdict)) for verdict in verdicts)
    tp, tn, fp, fn = cells[yes, yes], cells[no, no], cells[no, yes], cells[yes, no]
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    return 100 * (tp * tn - fp * fn) / below**0.5 if below else 0.0


def whole_questions(verdicts: Sequence[Verdict]) -> float:
    """Share of the questions all of whose answers are judged right (EM of MultiRC)."""
    questions: dict[tuple[int, ...], bool] = defaultdict(lambda: True)
    for verdict in verdicts:
        questions[verdict.example.idx[:2]] &= verdict.is_right
    return _percent(questions.values())


def gender_parity(verdicts: Sequence[Verdict]) -> float:
    """Share of the pairs of sentences, alike but for a pronoun's gender, that are judged alike (AX-g)."""
    pairs: dict[int, set[str | None]] = defaultdict(set)
    for verdict in verdicts:
        pairs[verdict.example.pair].add(verdict.prediction)
    return _percent([len(said) == 1 and None not in said for said in pairs.values()])


def exact_match(verdicts: Sequence[Verdict]) -> float:
    """Share of answers equal to a right one but for case, punctuation and articles, as in SQuAD."""
    return _percent([any(_words(one.answer) == _words(gold) for gold in one.example.gold) for one in verdicts])


def word_f1(verdicts: Sequence[Verdict]) -> float:
    """F1 of an answer's words against those of the nearest right answer, as in SQuAD; the mean over the examples."""
    best = [max(_overlap(_words(one.answer), _words(gold)) for gold in one.example.gold) for one in verdicts]
    return 100 * sum(best) / len(best)


def _percent(truths: Collection[bool]) -> float:
    return 100 * sum(truths) / len(truths)


def _counted(verdict: Verdict) -> str | None:
    """The prediction; for an answer outside of two labels the wrong one of them, so that it does not help."""
    gold, choices = verdict.example.gold[0], verdict.example.choices
    if verdict.prediction is None and len(choices) == 2:
        return choices[1 - choices.index(gold)]
    return verdict.prediction


def _f1(verdicts: Sequence[Verdict], label: str) -> float:
    said = sum(_counted(verdict) == label for verdict in verdicts)
    meant = sum(label in verdict.example.gold for verdict in verdicts)
    both = sum(verdict.is_right and verdict.prediction == label for verdict in verdicts)
    return 100 * 2 * both / (said + meant) if both else 0.0


def _words(text: str) -> list[str]:
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(said: list[str], meant: list[str]) -> float:
    common = (Counter(said) & Counter(meant)).total()
    return 2 * common / (len(said) + len(meant)) if common else 0.0
