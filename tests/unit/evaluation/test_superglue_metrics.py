"""SuperGLUE's metrics against scikit-learn, and against cases worked out by hand."""

import random

import pytest
from sklearn import metrics as sklearn

from fivefold.evaluation.superglue.example import Example, Source, Verdict
from fivefold.evaluation.superglue.metrics import (
    accuracy,
    exact_match,
    gender_parity,
    macro_f1,
    matthews,
    positive_f1,
    whole_questions,
    word_f1,
)
from fivefold.evaluation.superglue.score import average, score_task
from fivefold.evaluation.superglue.tasks import TASKS

NO_SOURCE = Source("", "")
THREE, TRUTH, TWO = ("entailment", "contradiction", "neutral"), ("False", "True"), ("entailment", "not_entailment")


def verdict(gold, said, labels=TRUTH, idx=(0,), pair=-1) -> Verdict:
    example = Example(idx, NO_SOURCE, labels, (gold,), pair=pair)
    return Verdict(example, said or "", said)


def drawn(labels, number=200, seed=0):
    """Predictions that are right more often than not, in Python's and in scikit-learn's form."""
    draw = random.Random(seed)
    gold = [draw.choice(labels) for _ in range(number)]
    said = [one if draw.random() < 0.5 else draw.choice(labels) for one in gold]
    return [verdict(*pair, labels) for pair in zip(gold, said, strict=True)], gold, said


@pytest.mark.parametrize("seed", range(3))
def test_as_scikit_learn(seed):
    verdicts, gold, said = drawn(THREE, seed=seed)
    assert accuracy(verdicts) == pytest.approx(100 * sklearn.accuracy_score(gold, said))
    assert macro_f1(verdicts) == pytest.approx(100 * sklearn.f1_score(gold, said, average="macro"))
    verdicts, gold, said = drawn(TRUTH, seed=seed)
    assert positive_f1(verdicts) == pytest.approx(100 * sklearn.f1_score(gold, said, pos_label="True"))
    verdicts, gold, said = drawn(TWO, seed=seed)
    assert matthews(verdicts) == pytest.approx(100 * sklearn.matthews_corrcoef(gold, said))


def test_an_answer_outside_the_labels_is_worth_what_a_wrong_one_is():
    for labels, metric in ((TRUTH, accuracy), (TRUTH, positive_f1), (TWO, matthews)):
        right = [verdict(one, one, labels) for one in labels * 4]
        wrong = [verdict(labels[0], labels[1], labels), verdict(labels[1], labels[0], labels)]
        outside = [verdict(one, None, labels) for one in labels]
        assert metric([*right, *outside]) == pytest.approx(metric([*right, *wrong]))
        assert metric([*right, *outside]) < 100
    # With three labels no one of them is the wrong one: nothing is said.
    some = [verdict(one, one, THREE) for one in THREE] + [verdict("neutral", None, THREE)]
    assert macro_f1(some) == pytest.approx(100 * (1 + 1 + 2 / 3) / 3)


def test_one_label_only():
    assert matthews([verdict("entailment", "entailment", TWO)] * 3) == 0
    assert positive_f1([verdict("False", "False")] * 3) == 0


def test_a_question_is_right_when_all_its_answers_are():
    said = [((0, 0, 0), "True"), ((0, 0, 1), "True"), ((0, 1, 2), "True"), ((1, 0, 3), None), ((1, 0, 4), "True")]
    assert whole_questions([verdict("True", one, idx=idx) for idx, one in said]) == pytest.approx(100 * 2 / 3)


def test_parity_is_of_pairs_judged_alike():
    said = [(0, TWO[0]), (0, TWO[0]), (1, TWO[0]), (1, TWO[1]), (2, TWO[1]), (2, TWO[1]), (3, None), (3, None)]
    assert gender_parity([verdict(TWO[0], one, TWO, pair=pair) for pair, one in said]) == 50


@pytest.mark.parametrize(
    ("answer", "gold", "f1", "em"),
    [
        ("The Lisbon", ("lisbon",), 1, 1),
        ("Ana", ("Ana Costa", "Costa"), 2 / 3, 0),
        ("Costa, Ana!", ("Ana Costa",), 1, 0),
        ("the", ("a",), 0, 1),
        ("Porto", ("Lisbon",), 0, 0),
    ],
)
def test_words_as_in_squad(answer, gold, f1, em):
    one = Verdict(Example((0, 0), NO_SOURCE, ("x",), gold), answer, None)
    assert word_f1([one]) == pytest.approx(100 * f1)
    assert exact_match([one]) == 100 * em


def test_baselines():
    gold = ["True"] * 30 + ["False"] * 10
    examples = [Example((number,), NO_SOURCE, TRUTH, (one,)) for number, one in enumerate(gold)]
    score = score_task(TASKS["boolq"], [TASKS["boolq"].judge(example, "True or not") for example in examples])
    assert score.metrics == {"accuracy": 0}
    assert score.num_outside == 40
    assert score.majority == {"accuracy": 75}
    assert score.guessed["accuracy"] == pytest.approx(50, abs=3)  # 4,000 guesses: a deviation of 0.8

    sentences = [Example((number,), NO_SOURCE, gold=(one,), referent="Bob") for number, one in enumerate(gold)]
    wsc = score_task(TASKS["wsc"], [TASKS["wsc"].judge(example, "Bob") for example in sentences])
    assert (wsc.metrics, wsc.majority) == ({"accuracy": 75}, {"accuracy": 75})
    assert wsc.guessed["accuracy"] == pytest.approx(50, abs=3)

    names = Example((0, 0), Source("record", "Rome and Rome and Bern"), ("Bern", "Rome"), ("Rome",))
    record = score_task(TASKS["record"], [TASKS["record"].judge(names, "Bern")])
    assert (record.metrics["em"], record.majority["em"]) == (0, 100)


def test_the_benchmarks_average_is_of_the_eight_tasks_with_two_metrics_averaged():
    cb = [verdict("neutral", "neutral", THREE), verdict("entailment", "neutral", THREE)]
    scores = {name: score_task(TASKS["boolq"], [verdict("True", "True")]) for name in TASKS}
    assert average(scores) == 100
    scores["cb"] = score_task(TASKS["cb"], cb)
    assert scores["cb"].score == pytest.approx((50 + 100 * 2 / 9) / 2)
    assert average(scores) == pytest.approx((700 + scores["cb"].score) / 8)
    assert average({name: scores[name] for name in list(scores)[:7]}) is None
