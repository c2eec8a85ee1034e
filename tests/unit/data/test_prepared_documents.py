"""Clean documents on disk: the same to the byte whatever the workers and interruptions, and nothing half-written."""

import errno
import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from wiki_dump import Page, articles, with_others, write_dump

import fivefold.corpus.batches as batches_module
import fivefold.data.prepared_documents as module
from fivefold.corpus.catalogue import CATALOGUE
from fivefold.corpus.clean import to_simplified
from fivefold.corpus.files import REPORT_NAME
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CleaningSettings, CorpusSettings
from fivefold.data.prepared_documents import ShardWriter, json_line, prepare_documents, unfinished_folder
from fivefold.data.settings import PrepareSettings
from fivefold.errors import CheckpointError, DataError

CLEANING = CleaningSettings(normalise="nfkc", simplified=True, min_characters=20, deduplicate="near")


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "BATCH_CHARACTERS", 3_000)
    monkeypatch.setattr(module, "SHARD_BYTES", 20_000)


@pytest.fixture
def dump(tmp_path: Path) -> CorpusSettings:
    """240 articles, of which 20 come again, 10 nearly so, and some are short."""
    pages = list(articles(240))
    again = [*pages[:20], *(Page(f"近 {n}", "开头。\n" + page.markup) for n, page in enumerate(pages[20:30]))]
    short = [Page(f"短 {number}", "太短了。") for number in range(5)]
    (tmp_path / "input").mkdir()
    write_dump(tmp_path / "input" / "a.xml", with_others(pages[:120]))
    write_dump(tmp_path / "input" / "b.xml.bz2", [*with_others(pages[120:]), *again, *short])
    return CorpusSettings(data=[str(tmp_path / "input")])


def prepare(corpus: CorpusSettings, folder: Path, **settings) -> module.DocumentReport:
    return prepare_documents(corpus, CLEANING, PrepareSettings(str(folder), **settings))


def checksums(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_the_report_accounts_for_every_page(dump: CorpusSettings, tmp_path: Path) -> None:
    report = prepare(dump, tmp_path / "out")
    assert report.documents_read == 275
    assert report.left_out == {"equal to an earlier one": 20, "nearly equal to an earlier one": 10, "too short": 5}
    assert report.not_documents == {"redirects": 60, "pages that are no articles": 48}
    assert report.documents_kept == 240 == sum(shard["documents"] for shard in report.shards)
    assert len(report.shards) > 5
    written = json.loads((tmp_path / "out" / REPORT_NAME).read_text())
    assert written == json.loads(json.dumps(vars(report)))
    found = checksums(tmp_path / "out")
    assert found == {shard["file"]: shard["sha256"] for shard in report.shards} | {REPORT_NAME: found[REPORT_NAME]}


def test_the_folder_is_data_for_every_verb(dump: CorpusSettings, tmp_path: Path) -> None:
    report = prepare(dump, tmp_path / "out")
    records = list(open_corpus(CorpusSettings(data=[str(tmp_path / "out")])))
    assert [record["title"] for record in records] == [f"條目 {number}" for number in range(240)]
    assert all(record["text"] == to_simplified(record["text"]) for record in records)
    assert sum(len(record["text"].encode()) for record in records) == report.bytes_kept


def test_workers_change_nothing(dump: CorpusSettings, tmp_path: Path) -> None:
    prepare(dump, tmp_path / "none")
    prepare(dump, tmp_path / "two", num_workers=2)
    assert checksums(tmp_path / "none") == checksums(tmp_path / "two")


@pytest.mark.parametrize("shards_done", [1, 3, 6])
def test_an_interrupted_run_goes_on_to_the_same_result(
    shards_done: int, dump: CorpusSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(dump, tmp_path / "whole")
    out, finish = tmp_path / "out", ShardWriter.finish

    def interrupt(self: ShardWriter) -> dict:
        if self._number == shards_done:
            raise KeyboardInterrupt
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", interrupt)
        with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
            prepare(dump, out)
    assert not out.exists()
    with pytest.raises(DataError, match="go on with --resume, or begin anew with --overwrite"):
        prepare(dump, out)
    (tmp_path / "input").rename(tmp_path / "moved")
    prepare(replace(dump, data=[str(tmp_path / "moved")]), out, resume=True)
    assert not unfinished_folder(out).exists()
    assert checksums(tmp_path / "whole") == checksums(out)


def test_what_cannot_be_gone_on_with(dump: CorpusSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, finish = tmp_path / "out", ShardWriter.finish
    with pytest.raises(CheckpointError, match="No interrupted run left documents"):
        prepare(dump, out, resume=True)

    def fail(self: ShardWriter) -> dict:
        if self._number == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", fail)
        with pytest.raises(DataError, match="is full; free some space and go on with --resume"):
            prepare(dump, out)
    other = replace(CLEANING, near_threshold=0.9)
    with pytest.raises(CheckpointError, match=r"another near_threshold \(0.8\)"):
        prepare_documents(dump, other, PrepareSettings(str(out), resume=True))
    (tmp_path / "input" / "c.txt").write_text("more")
    with pytest.raises(CheckpointError, match="is not what the saved run was reading"):
        prepare(dump, out, resume=True)
    prepare(dump, out, overwrite=True)
    with pytest.raises(CheckpointError, match="is there already"):
        prepare(dump, out, resume=True)


def test_what_fails_before_anything_is_whole_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "一"}\n{broken\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not JSON"):
        prepare(CorpusSettings(data=[str(tmp_path / "a.jsonl")]), tmp_path / "out")
    with pytest.raises(DataError, match="No document is left of 1: 1 too short"):
        prepare(CorpusSettings(data=[str(tmp_path / "a.jsonl")], max_bad_lines=1), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_other_fields_stay(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7, "body": "  一個\\n", "label": null}\n{"id": 8, "body": " "}\n')
    corpus = CorpusSettings(data=[str(tmp_path / "a.jsonl")], text_field="body")
    prepare_documents(corpus, CleaningSettings(simplified=True), PrepareSettings(str(tmp_path / "out")))
    assert list(open_corpus(replace(corpus, data=[str(tmp_path / "out")]))) == [
        {"id": 7, "body": "  一个\n", "label": None}
    ]


def test_lines_hold_what_json_and_utf8_cannot() -> None:
    assert json.loads(json_line({"text": "\ud800", "when": Path("a")})) == {"text": "\ud800", "when": "a"}


def test_a_hub_corpus_goes_through_the_same_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue's Wikipedia, as a local folder that `datasets` opens like a Hub data set."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    records = [{"title": f"頁 {number}", "text": f"這是第{number % 30}頁。" * 20} for number in range(40)]
    (tmp_path / "hub" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    local = replace(CATALOGUE["wikipedia_zh"], hub_id=str(tmp_path / "hub"), config=None)
    monkeypatch.setitem(CATALOGUE, "wikipedia_zh", local)
    report = prepare(CorpusSettings(data=["wikipedia_zh"]), tmp_path / "out")
    assert report.left_out == {"equal to an earlier one": 10}
    (first, *others) = open_corpus(CorpusSettings(data=[str(tmp_path / "out")]))
    assert first == {"title": "頁 0", "text": "这是第0页。" * 20}
    assert len(others) == 29
