"""The stream over all sources: order, checks of records, and its state."""

import json
from itertools import islice
from pathlib import Path

import pyarrow
import pytest

from fivefold.corpus.read import Corpus, open_corpus, texts
from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import CheckpointError, DataError

GOOD = [{"text": f"document {number}"} for number in range(12)]


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Three files in two folders, a broken line in each but the last."""
    (tmp_path / "b").mkdir()
    lines = [json.dumps(record) for record in GOOD]
    (tmp_path / "b" / "1.jsonl").write_text("\n".join([*lines[:4], "{broken"]))
    (tmp_path / "b" / "2.jsonl").write_text("\n".join(['{"text": 5}', *lines[4:8]]))
    (tmp_path / "a.txt").write_text("\n".join(record["text"] for record in GOOD[8:]))
    return [str(tmp_path / "b"), str(tmp_path / "a.txt")]


def test_sources_follow_each_other_in_the_order_given(data: list[str]) -> None:
    settings = CorpusSettings(data=data, max_bad_lines=2)
    corpus = open_corpus(settings)
    assert list(corpus) == GOOD
    assert list(corpus) == GOOD, "a second pass begins anew, with its count of broken lines"
    reversed_settings = CorpusSettings(data=data[::-1], max_bad_lines=2)
    assert list(open_corpus(reversed_settings)) == GOOD[8:] + GOOD[:8]


def test_resuming_at_every_record_gives_exactly_the_rest(data: list[str]) -> None:
    settings = CorpusSettings(data=data, max_bad_lines=2)
    for taken in range(len(GOOD) + 1):
        corpus = open_corpus(settings)
        assert list(islice(corpus, taken)) == GOOD[:taken]
        state = json.loads(json.dumps(corpus.state_dict()))
        resumed = open_corpus(settings)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        assert list(resumed) == GOOD[taken:]
        assert list(resumed) == GOOD, "the state holds for one pass"


def test_the_state_is_that_of_the_latest_pass(data: list[str]) -> None:
    corpus = open_corpus(CorpusSettings(data=data, max_bad_lines=2))
    beginning = corpus.state_dict()
    list(corpus)
    assert corpus.state_dict() != beginning
    iter(corpus)
    assert corpus.state_dict() == beginning


def test_broken_lines_count_on_after_resuming(data: list[str]) -> None:
    corpus = open_corpus(CorpusSettings(data=data, max_bad_lines=2))
    list(islice(corpus, 5))
    resumed = open_corpus(CorpusSettings(data=data, max_bad_lines=2))
    resumed.load_state_dict(corpus.state_dict())
    assert resumed.state_dict()["bad_lines"] == 2
    strict = open_corpus(CorpusSettings(data=data, max_bad_lines=1))
    with pytest.raises(DataError, match=r"2\.jsonl:1: field 'text' holds a int.*number 2, --max_bad_lines allows 1"):
        list(strict)


def test_a_state_of_other_data_is_refused(data: list[str]) -> None:
    settings = CorpusSettings(data=data, max_bad_lines=2)
    state = open_corpus(settings).state_dict()
    with Path(data[1]).open("a") as file:
        file.write("more")
    with pytest.raises(CheckpointError, match="not what the saved run was reading"):
        open_corpus(settings).load_state_dict(state)


def test_data_may_move_between_runs(data: list[str], tmp_path: Path) -> None:
    corpus = open_corpus(CorpusSettings(data=data, max_bad_lines=2))
    list(islice(corpus, 6))
    moved = (tmp_path / "b").rename(tmp_path / "elsewhere")
    resumed = open_corpus(CorpusSettings(data=[str(moved), data[1]], max_bad_lines=2))
    resumed.load_state_dict(corpus.state_dict())
    assert list(resumed) == GOOD[6:]


def test_fields_that_a_record_must_have(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "one", "response": "two"}\n')
    settings = CorpusSettings(data=[str(path)])
    assert list(open_corpus(settings, ["prompt", "response"])) == [{"prompt": "one", "response": "two"}]
    assert list(open_corpus(settings, [])) == [{"prompt": "one", "response": "two"}]
    with pytest.raises(DataError, match=r"a\.jsonl:1: no field 'text', only 'prompt', 'response'"):
        list(open_corpus(settings))


def test_the_text_field_may_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"content": "one"}\n')
    (tmp_path / "b.txt").write_text("two\n\n  \nthree")
    corpus = open_corpus(CorpusSettings(data=[str(tmp_path)], text_field="content"))
    assert list(texts(corpus, "content")) == ["one", "two", "three"]


def test_a_corpus_without_records_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(DataError, match="holds no record"):
        list(open_corpus(CorpusSettings(data=[str(tmp_path)])))


def test_a_file_that_disappears_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    corpus = open_corpus(CorpusSettings(data=[str(path)]))
    assert isinstance(corpus, Corpus)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt cannot be read"):
        list(corpus)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.json", "a.txt.bz2"])
def test_how_far_reading_is(name: str, tmp_path: Path) -> None:
    """From nothing to everything, never back; a file counts by what was read of it, compressed or not."""
    for number in range(3):
        records = [{"text": f"{number} {line} " * 20} for line in range(2000)]
        lines = (json.dumps(record) if ".json" in name else record["text"] for record in records)
        content = json.dumps(records) if name == "a.json" else "".join(f"{line}\n" for line in lines)
        compression = {".gz": "gzip", ".bz2": "bz2"}.get(Path(name).suffix)
        with pyarrow.output_stream(str(tmp_path / f"{number}{name}"), compression=compression) as stream:
            stream.write(content.encode())
    corpus = open_corpus(CorpusSettings(data=[str(tmp_path)]))
    assert corpus.read_frac == 0
    fractions = [corpus.read_frac for _ in corpus]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert len(set(fractions)) >= 3
