"""Records of each task to the texts that T5 was given (its appendix D, with sentences of our own), and back."""

import json

import pytest
from superglue_folder import write_superglue_folder

from fivefold.errors import DataError
from fivefold.evaluation.superglue.example import Example, Source
from fivefold.evaluation.superglue.read import check_labels, read_examples
from fivefold.evaluation.superglue.tasks import TASKS

STORY = "<b>Sent 1: </b>Ada took the early train to Bern.<br><b>Sent 2: </b>She read a letter on the way.<br>"
NEWS = 'A storm hit Lisbon on Monday.\n@highlight\nMayor Ana Costa closed the schools\n@highlight\n"Stay at home"'
MILL = "The mill by the river ground corn until 1901. Then a flood took its wheel away, and nobody built another one."

TEXTS = {
    "boolq": f"boolq passage: {MILL} question: did the mill stop in 1901",
    "cb": "cb hypothesis: Nora owned a boat. premise: Nora sold 1 boats.",
    "copa": "copa choice1: The room was hot. choice2: The room was empty. premise: Guest 1 opened a window. "
    "question: cause",
    "record": "record query: On day 1 @placeholder spoke to the city. entities: Lisbon, Ana Costa, Monday passage: "
    'A storm hit Lisbon on Monday. Mayor Ana Costa closed the schools. "Stay at home"',
    "rte": "rte hypothesis: Nora owned a boat. premise: Nora sold 1 boats.",
    "wic": "wic sentence1: Bank number 1 was closed. sentence2: We sat on the bank of the river. word: bank",
    "wsc": "wsc: The tray did not fit over the mug, said 1 of us, because *it* was too tall.",
    "axb": "rte hypothesis: Nora owned a boat. premise: Nora sold 1 boats.",
    "axg": "rte hypothesis: Nora owned a boat. premise: Nora sold 1 boats.",
}
GOLD = {"boolq": "True", "cb": "contradiction", "copa": "choice2", "record": "Ana Costa", "rte": "not_entailment"} | {
    "wic": "True",
    "wsc": "True",
    "axb": "not_entailment",
    "axg": "not_entailment",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_superglue_folder(tmp_path_factory.mktemp("superglue"))


@pytest.mark.parametrize("name", TEXTS)
def test_text_and_label(folder, name):
    examples = read_examples(TASKS[name], str(folder), "validation")
    assert len(examples) == 6
    assert examples[1].source.text == TEXTS[name]
    assert examples[1].gold == (GOLD[name],)
    assert examples[1].targets == (("the mug",) if name == "wsc" else (GOLD[name],))
    assert examples[1].idx == ((1, 11) if name == "record" else (1,))


def test_multirc_is_judged_answer_by_answer_without_markup(folder):
    examples = read_examples(TASKS["multirc"], str(folder), "validation")
    story = "Sent 1: Ada took the early train to Bern. Sent 2: She read a letter on the way. "
    assert [example.source.text for example in examples[2:4]] == [
        f"multirc question: Where did Ada go? answer: to Bern paragraph: {story}",
        f"multirc question: Where did Ada go? answer: a letter paragraph: {story}",
    ]
    assert [example.gold for example in examples[:4]] == [("False",), ("True",), ("True",), ("False",)]
    assert [example.idx for example in examples[:4]] == [(0, 0, 0), (0, 0, 1), (1, 1, 2), (1, 1, 3)]


def test_wsc_teaches_right_referents_only(folder):
    examples = read_examples(TASKS["wsc"], str(folder), "train")
    assert {example.targets for example in examples} == {(), ("the mug",)}
    assert all(bool(example.targets) == (example.gold == ("True",)) for example in examples)


@pytest.mark.parametrize(
    ("text", "place", "pronoun", "marked"),
    [
        ('He left him. "Good for him," she said.', 6, "him", 'He left him. "Good for *him*," she said.'),
        ("They gave the item to them, for it shone.", 6, "it", "They gave the item to them, for *it* shone."),
        ("It rained, so it did.", 0, "It", "*It* rained, so it did."),
        ("Ben said his. ", 1, "his", "Ben said *his*."),
    ],
)
def test_the_pronoun_that_is_meant_is_marked(text, place, pronoun, marked):
    record = {"text": text, "span1_text": "x", "span2_text": pronoun, "span2_index": place, "idx": 0}
    assert TASKS["wsc"].source(record).text == f"wsc: {marked}"


@pytest.mark.parametrize(
    ("answer", "referent", "prediction"),
    [
        ("the mug", "The mug", "True"),
        ("Mug", "the blue mug", "True"),
        ("the big blue mug", "blue mug", "True"),
        ("the tray", "the mug", "False"),
        ("Bob", "Bob's hat", "False"),
        ("the", "the mug", None),
        ("", "the mug", None),
    ],
)
def test_a_referent_is_compared_by_its_words(answer, referent, prediction):
    example = Example((0,), Source("", ""), gold=("True",), referent=referent)
    assert TASKS["wsc"].judge(example, answer).prediction == prediction


HUB = {
    "boolq": {"question": "did the mill stop in 1901", "passage": MILL, "idx": 1, "label": 1},
    "cb": {"premise": "Nora sold 1 boats.", "hypothesis": "Nora owned a boat.", "idx": 1, "label": 1},
    "multirc": {
        "paragraph": STORY,
        "question": "Where did Ada go?",
        "answer": "to Bern",
        "idx": {"paragraph": 1, "question": 1, "answer": 2},
        "label": 1,
    },
    "record": {
        "passage": NEWS,
        "query": "On day 1 @placeholder spoke to the city.",
        "entities": ["Lisbon", "Ana Costa", "Monday"],
        "answers": ["Ana Costa"],
        "idx": {"passage": 1, "query": 11},
    },
    "wsc": {
        "text": "The tray did not fit over the mug, said 1 of us, because it was too tall.",
        "span1_index": 6,
        "span2_index": 12,
        "span1_text": "the mug",
        "span2_text": "it",
        "idx": 1,
        "label": 1,
    },
}


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_form_says_the_same(folder, name):
    task = TASKS[name]
    assert list(task.flatten(HUB[name])) == [HUB[name]]
    of_folder = read_examples(task, str(folder), "validation")
    assert task.example(HUB[name]) == next(one for one in of_folder if one.idx == task.idx_of(HUB[name]))
    assert task.example({**HUB[name], "label": -1, "answers": []}).gold == ()


SUBMITTED = {
    "boolq": {"idx": 1, "label": "true"},
    "cb": {"idx": 1, "label": "contradiction"},
    "copa": {"idx": 1, "label": 1},
    "record": {"idx": 11, "label": "Ana Costa"},
    "rte": {"idx": 1, "label": "not_entailment"},
    "wic": {"idx": 1, "label": "true"},
    "wsc": {"idx": 1, "label": "True"},
    "axb": {"idx": 1, "label": "not_entailment"},
    "axg": {"idx": 1, "label": "not_entailment"},
    "multirc": {
        "idx": 1,
        "passage": {"questions": [{"idx": 1, "answers": [{"idx": 2, "label": 1}, {"idx": 3, "label": 0}]}]},
    },
}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_submitted(folder, name):
    task = TASKS[name]
    examples = read_examples(task, str(folder), "validation")
    right = [task.judge(example, {"wsc": example.referent}.get(name, example.gold[0])) for example in examples]
    lines = list(task.submission(right))
    assert len(lines) == 6
    assert lines[1] == SUBMITTED[name]
    nonsense = [task.judge(example, "perhaps") for example in examples]
    assert all(verdict.prediction in (None, "False") for verdict in nonsense)
    json.dumps(list(task.submission(nonsense)))


def test_a_split_without_labels(folder):
    for name in ("boolq", "multirc", "record", "wsc"):
        examples = read_examples(TASKS[name], str(folder), "test")
        assert not any(example.gold or example.targets for example in examples)
        check_labels(TASKS[name], examples, str(folder), "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"idx": 0, "passage": "x"}', "BoolQ needs the field 'question', but there are 'idx', 'passage'"),
        ('{"idx": 0, "passage": 3, "question": "x"}', "the field 'passage' is 3; expected text"),
        (
            '{"idx": 0, "passage": "x", "question": "x", "label": "maybe"}',
            "the label is 'maybe'; expected one of False",
        ),
        ('{"idx": 0, "passage": "x", "question": "x", "label": 7}', "the label is 7; expected one of False, True"),
        ('{"idx": "a", "passage": "x", "question": "x"}', "is no record of BoolQ"),
        ("[]", "holds a list; expected an object"),
        ("{", "is not JSON"),
        ("", "BoolQ has no records in validation"),
    ],
)
def test_broken_records_are_named(tmp_path, line, message):
    file = tmp_path / "BoolQ" / "val.jsonl"
    file.parent.mkdir()
    file.write_text(f"{line}\n")
    with pytest.raises(DataError, match=message):
        read_examples(TASKS["boolq"], str(tmp_path), "validation")


def test_a_task_folder_without_the_split(folder, tmp_path):
    with pytest.raises(DataError, match=r"BoolQ has no other.jsonl, which --tasks boolq needs; there is test.jsonl"):
        read_examples(TASKS["boolq"], str(folder), "other")
    with pytest.raises(DataError, match=r"has no val.jsonl or validation.jsonl .* there is no .jsonl file"):
        read_examples(TASKS["boolq"], str(tmp_path), "validation")


def test_half_labelled_is_refused(folder):
    task = TASKS["cb"]
    examples = [*read_examples(task, str(folder), "validation"), *read_examples(task, str(folder), "test")]
    with pytest.raises(DataError, match=r"6 of the 12 examples of CB in mixed of here have no label"):
        check_labels(task, examples, "here", "mixed")
