"""SuperGLUE's ten tasks in their official format, with sentences of our own."""

import json
from pathlib import Path
from typing import Any

_PASSAGE = (
    "The mill by the river ground corn until 1901. Then a flood took its wheel away, and nobody built another one."
)
_STORY = "<b>Sent 1: </b>Ada took the early train to Bern.<br><b>Sent 2: </b>She read a letter on the way.<br>"
_NEWS = 'A storm hit Lisbon on Monday.\n@highlight\nMayor Ana Costa closed the schools\n@highlight\n"Stay at home"'
_NAMES = ["Lisbon", "Ana Costa", "Lisbon", "Monday"]


def _spans(names: list[str]) -> list[dict[str, int]]:
    return [{"start": _NEWS.index(name), "end": _NEWS.index(name) + len(name) - 1} for name in names]


def _rows(number: int) -> dict[str, list[dict[str, Any]]]:
    """A record of each task; odd and even ones have different labels."""
    odd = bool(number % 2)
    cb = ("entailment", "contradiction", "neutral")[number % 3]
    rte = "not_entailment" if odd else "entailment"
    pair = {"premise": f"Nora sold {number} boats.", "hypothesis": "Nora owned a boat."}
    question = "Where did Ada go?" if odd else "What did she read?"
    answers = [{"idx": 2 * number + place, "text": text} for place, text in enumerate(("to Bern", "a <b>letter</b>"))]
    for place, answer in enumerate(answers):
        answer["label"] = int((place == 0) == odd)
    referent = "the mug" if odd else "The tray"
    return {
        "BoolQ": [{"question": f"did the mill stop in {1900 + number}", "passage": _PASSAGE, "label": odd}],
        "CB": [{**pair, "label": cb}],
        "COPA": [
            {
                "premise": f"Guest {number} opened a window.",
                "choice1": "The room was hot.",
                "choice2": "The room was empty.",
                "question": "cause" if odd else "effect",
                "label": int(odd),
            }
        ],
        "MultiRC": [
            {
                "passage": {"text": _STORY, "questions": [{"idx": number, "question": question, "answers": answers}]},
                "version": 1.1,
            }
        ],
        "ReCoRD": [
            {
                "source": "ours",
                "passage": {"text": _NEWS, "entities": _spans(_NAMES)},
                "qas": [
                    {
                        "idx": 10 + number,
                        "query": f"On day {number} @placeholder spoke to the city.",
                        "answers": [{"text": "Ana Costa" if odd else "Lisbon", "start": 0, "end": 0}],
                    }
                ],
            }
        ],
        "RTE": [{**pair, "label": rte}],
        "WiC": [
            {
                "word": "bank",
                "sentence1": f"Bank number {number} was closed.",
                "sentence2": "We sat on the bank of the river.",
                "start1": 0,
                "end1": 4,
                "start2": 14,
                "end2": 18,
                "label": odd,
            }
        ],
        "WSC": [
            {
                "text": f"The tray did not fit over the mug, said {number} of us, because it was too tall.",
                "target": {"span1_index": 6, "span1_text": referent, "span2_index": 12, "span2_text": "it"},
                "label": odd,
            }
        ],
        "AX-b": [{"sentence1": pair["premise"], "sentence2": pair["hypothesis"], "label": rte, "logic": ""}],
        "AX-g": [{**pair, "pair_id": number // 2, "label": rte}],
    }


def write_superglue_folder(folder: Path, *, num_train: int = 8, num_validation: int = 6, has_test: bool = True) -> Path:
    """Write BoolQ/train.jsonl and so on; test splits are those of validation, without labels."""
    for split, numbers in (("train", range(20, 20 + num_train)), ("val", range(num_validation))):
        for number in numbers:
            for task, records in _rows(number).items():
                for record in records:
                    is_diagnostic = task.startswith("AX")
                    if is_diagnostic and split == "train":
                        continue
                    _append(folder / task / (f"{task}.jsonl" if is_diagnostic else f"{split}.jsonl"), number, record)
                    if has_test and split == "val" and not is_diagnostic:
                        _append(folder / task / "test.jsonl", number, _without_labels(record))
    return folder


def _append(file: Path, number: int, record: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps({"idx": number, **record}) + "\n")


def _without_labels(part: Any) -> Any:
    if isinstance(part, list):
        return [_without_labels(one) for one in part]
    if isinstance(part, dict):
        secret = {"label"} | ({"answers"} if "query" in part else set())
        return {name: _without_labels(one) for name, one in part.items() if name not in secret}
    return part
