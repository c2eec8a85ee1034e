"""Rejected answers: in order, the same however they are batched or interrupted, and none that is the chosen one."""

import json

import pytest
from chat_models import small_tokenizer, write_model

from fivefold.data.preferences import Preference
from fivefold.errors import CheckpointError, ConfigError
from fivefold.models.answer_journal import AnswerJournal
from fivefold.models.answers import Answerer
from fivefold.models.decoding import RejectedDecoding
from fivefold.models.rejected_answers import fill_rejected
from fivefold.serving.open_model import open_model

GREEDY = RejectedDecoding(max_new_tokens=8, do_sample=False)
DRAWN = RejectedDecoding(max_new_tokens=8)
WORDS = ["abc", "de", "fghij", "jihg"]


@pytest.fixture(scope="module", params=["t5", "llama"])
def answerer(request, tmp_path_factory):
    return Answerer(*open_model(str(write_model(request.param, tmp_path_factory.mktemp("model"), small_tokenizer()))))


def prompt(number):
    return [{"role": "user", "content": " ".join([f"{number}", *WORDS[: number % 4 + 1]])}]


PREFERENCES = [Preference(prompt(number), "something good", None) for number in range(10)]


def fill(
    answerer, path, preferences=PREFERENCES, *, decoding=DRAWN, batch_size=4, candidates=3, similarity=0.9, **more
):
    with AnswerJournal(path, {"batch_size": batch_size}) as journal:
        return fill_rejected(
            preferences,
            answerer,
            decoding,
            journal,
            batch_size=batch_size,
            num_candidates=candidates,
            max_similarity=similarity,
            **more,
        )


@pytest.mark.parametrize("decoding", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_in_the_order_of_the_data_whatever_the_batch_size(answerer, tmp_path, decoding):
    filled = fill(answerer, tmp_path / "a", decoding=decoding)
    assert [pair.prompt for pair in filled.pairs] == [prompt(number) for number in range(10)]
    assert filled.written == 10
    assert len({pair.rejected for pair in filled.pairs}) > 5
    for batch_size in (1, 3):
        again = fill(answerer, tmp_path / f"b{batch_size}", decoding=decoding, batch_size=batch_size)
        assert again == filled


def test_what_is_there_is_kept_and_what_cannot_serve_is_counted(answerer, tmp_path, monkeypatch):
    said = {0: ["Fine!", "", "fine", "ok", "never asked"], 1: [""] * 5, 2: ["good"] * 5, 3: ["bad"] * 5}
    asked = []

    def write(prompts, decoding, numbers, draw):
        asked.extend((number, draw) for number in numbers)
        return [said[number][draw] for number in numbers]

    monkeypatch.setattr(answerer, "write", write)
    preferences = [
        Preference(prompt(0), "fine", None),
        Preference(prompt(1), "fine", None),
        Preference(prompt(2), "good", None),
        Preference(prompt(3), "good", None),
        Preference(prompt(4), "good", "Good!"),
    ]
    progress = []
    filled = fill(
        answerer,
        tmp_path / "a",
        preferences,
        candidates=5,
        show_progress=lambda done, more: progress.append((done, more)),
    )
    assert [(pair.prompt, pair.rejected) for pair in filled.pairs] == [
        (prompt(0), "ok"), (prompt(3), "bad"), (prompt(4), "Good!"),
    ]  # fmt: skip
    assert (filled.kept, filled.written, filled.empty, filled.similar) == (1, 2, 1, 1)
    assert sorted(asked) == [
        *((0, d) for d in range(4)),
        *((1, d) for d in range(5)),
        *((2, d) for d in range(5)),
        (3, 0),
    ]
    assert sum(done for done, _ in progress) == sum(more for _, more in progress) == len(asked)


class Interruption(Exception):
    pass


def test_interrupted_anywhere_and_resumed_is_uninterrupted(answerer, tmp_path, monkeypatch):
    preferences = [Preference(p.prompt, "x", None) for p in PREFERENCES]
    settings = {"candidates": 2, "similarity": 0.0}  # some cannot serve, so that there are draws of both kinds
    whole = fill(answerer, tmp_path / "whole", preferences, **settings)
    content = (tmp_path / "whole").read_bytes()
    lines = content.splitlines(keepends=True)
    for number in range(len(lines)):
        path = tmp_path / f"{number}"
        path.write_bytes(b"".join(lines[:number]) + lines[number][: len(lines[number]) // 2])
        assert fill(answerer, path, preferences, **settings) == whole
        assert path.read_bytes() == content
    monkeypatch.setattr(answerer, "write", None)  # nothing is left to be written
    assert fill(answerer, tmp_path / "whole", preferences, **settings) == whole


def test_a_journal_of_something_else_is_refused(tmp_path):
    path = tmp_path / "journal"
    with AnswerJournal(path, {"model": "a", "seed": 1}) as journal:
        journal.add(0, 0, answers=["x"])
    with pytest.raises(ConfigError, match="begun with seed 1, which is 2 now"):
        AnswerJournal(path, {"model": "a", "seed": 2})
    path.write_text(json.dumps({"model": "a", "seed": 1}) + '\n{"draw": 0}\n')
    with pytest.raises(CheckpointError, match="is damaged"):
        AnswerJournal(path, {"model": "a", "seed": 1})
