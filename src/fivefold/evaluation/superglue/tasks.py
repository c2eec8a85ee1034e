"""The eight tasks of SuperGLUE and its two diagnostics, by name."""

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
from fivefold.evaluation.superglue.multirc import MultiRC
from fivefold.evaluation.superglue.record import ReCoRD
from fivefold.evaluation.superglue.task import Task
from fivefold.evaluation.superglue.wsc import WSC

_TRUTH = ("False", "True")
_ENTAILMENT = ("entailment", "not_entailment")
_LOWER = {"False": "false", "True": "true"}
_PREMISE = {"hypothesis": "hypothesis", "premise": "premise"}
_SENTENCES = {"hypothesis": "sentence2", "premise": "sentence1"}
_COPA = {name: name for name in ("choice1", "choice2", "premise", "question")}
_WIC = {name: name for name in ("sentence1", "sentence2", "word")}
_MULTIRC = {name: name for name in ("question", "answer", "paragraph")}
_RECORD = {name: name for name in ("query", "entities", "passage")}
_BOOLQ = {name: name for name in ("passage", "question")}
_ACCURACY = {"accuracy": accuracy}
_CB = ("entailment", "contradiction", "neutral")
_CHOICES = ("choice1", "choice2")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("boolq", "BoolQ", "boolq", _BOOLQ, "passage", _TRUTH, _ACCURACY, _LOWER),
        Task("cb", "CB", "cb", _PREMISE, "premise", _CB, {**_ACCURACY, "f1": macro_f1}),
        Task("copa", "COPA", "copa", _COPA, "premise", _CHOICES, _ACCURACY, {"choice1": 0, "choice2": 1}),
        MultiRC(
            "multirc", "MultiRC", "multirc", _MULTIRC, "paragraph", _TRUTH, {"f1a": positive_f1, "em": whole_questions}
        ),
        ReCoRD("record", "ReCoRD", "record", _RECORD, "passage", (), {"f1": word_f1, "em": exact_match}),
        Task("rte", "RTE", "rte", _PREMISE, "premise", _ENTAILMENT, _ACCURACY),
        Task("wic", "WiC", "wic", _WIC, "sentence2", _TRUTH, _ACCURACY, _LOWER),
        WSC("wsc", "WSC", "wsc:", {}, "", _TRUTH, _ACCURACY),
        Task("axb", "AX-b", "rte", _SENTENCES, "premise", _ENTAILMENT, {"matthews": matthews}, is_diagnostic=True),
        Task(
            "axg",
            "AX-g",
            "rte",
            _PREMISE,
            "premise",
            _ENTAILMENT,
            {**_ACCURACY, "gender_parity": gender_parity},
            is_diagnostic=True,
        ),
    )
}
"""In the order of the benchmark's table."""
