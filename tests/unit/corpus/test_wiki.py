"""Dumps: articles only, the same from any page on, flat memory, and a clear end where a dump is cut off."""

import bz2
import gzip
import logging
import re
import tracemalloc
from pathlib import Path

import pytest
from wiki_dump import CLOSED, HEAD, Page, articles, dump_text, page_text, with_others, write_dump

from fivefold.corpus.bad_lines import BadLines
from fivefold.corpus.files import FileReader, file_kind
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.wiki import Wikitext
from fivefold.errors import DataError

# The first and the last are written out in a text of the tests, as <nowiki>.
MARKUP = {
    "brackets": r"\{\{|\}\}|(?<!写)\[\[|(?<!链接)\]\]|\{\||-\{",
    "tags": r"</?(?:ref|div|span|br|sub|sup|small|gallery|math|nowiki|table|poem|ruby)\b",
    "comments": "<!--|-->",
    "headings": r"(?m)^=+.*=+$",
    "rows": r"(?m)^(?:\||!.*!!)",
    "lists": r"(?m)^[*#:;]",
    "files and categories": r"(?im)\b(?:file|image|文件|檔案|分类|分類|kategorie|dosiero|kategoriaro|thumb):",
    "entities": r"&(?!amp;)[a-z]+;|&#",
    "addresses": r"https?://",
    "switches": r"__(?!init)[A-Z\u4e00-\u9fff]+__",
    "variants": r"zh-(?:hans|hant|cn|tw|hk)",
    "bold and italics": r"(?<!和)''+(?!斜体|即可)",
}


def reader(path: Path, *, allowed: int = 0, position: list[int] | tuple[int, ...] = ()) -> FileReader:
    return FileReader(
        path, text_unit="line", text_field="text", fields=["text"], bad_lines=BadLines(allowed), position=position
    )


@pytest.mark.parametrize("name", ["a.xml", "a.xml.bz2"])
def test_a_dump_of_every_construct_leaves_no_markup(name: str, tmp_path: Path) -> None:
    pages = list(with_others(articles(240)))
    assert len(CLOSED) <= 240
    read = reader(write_dump(tmp_path / name, pages))
    records = list(read)
    assert records == [{"title": page.title, "text": page.text} for page in pages if page.text is not None]
    assert len(records) == 240
    assert read.left_out == {"redirects": 60, "pages that are no articles": 48}
    whole = "\n".join(record["text"] for record in records)
    for what, pattern in MARKUP.items():
        assert not re.findall(pattern, whole), what


@pytest.mark.parametrize("name", ["a.xml", "a.xml.bz2"])
def test_a_reader_started_at_any_page_gives_the_rest(name: str, tmp_path: Path) -> None:
    path = write_dump(tmp_path / name, with_others(articles(20)))
    whole = reader(path)
    seen = [(whole.position, record) for record in whole]
    for number, (position, _) in enumerate(seen):
        assert list(reader(path, position=position)) == [record for _, record in seen[number + 1 :]]


def test_a_corpus_counts_what_it_left_out_and_goes_on_counting(tmp_path: Path) -> None:
    write_dump(tmp_path / "a.xml", with_others(articles(20)))
    write_dump(tmp_path / "b.xml.bz2", with_others(articles(20, seed=1)))
    settings = CorpusSettings(data=[str(tmp_path)])
    whole = open_corpus(settings)
    records = list(whole)
    left_out = whole.state_dict()["left_out"]
    assert left_out == {"redirects": 10, "pages that are no articles": 8}
    interrupted = open_corpus(settings)
    iterator = iter(interrupted)
    first = [next(iterator) for _ in range(23)]
    resumed = open_corpus(settings)
    resumed.load_state_dict(interrupted.state_dict())
    assert first + list(resumed) == records
    assert resumed.state_dict()["left_out"] == left_out


def test_markup_can_be_kept_for_later(tmp_path: Path) -> None:
    path = write_dump(tmp_path / "a.xml", articles(3))
    (first, *_) = open_corpus(CorpusSettings(data=[str(path)]), keep_markup=True)
    assert isinstance(first["text"], Wikitext)
    assert first["text"].plain_text() == next(articles(1)).text


@pytest.mark.parametrize("name", ["a.xml", "a.xml.bz2", "a.xml.gz"])
def test_a_dump_that_was_cut_off(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = list(articles(300))
    content = dump_text(pages).encode()
    half = len(content) // 2
    # bzip2 gives a block of 900 kB whole or not at all; large dumps consist of many streams.
    packed = {
        "a.xml": content,
        "a.xml.bz2": bz2.compress(content[:half]) + bz2.compress(content[half:]),
        "a.xml.gz": gzip.compress(content),
    }[name]
    path = tmp_path / name
    path.write_bytes(packed[: len(packed) * 5 // 6])
    with pytest.raises(DataError, match=rf"{name}.*behind page \d+ \('條目 \d+'\).*cut off.*--max_bad_lines"):
        list(reader(path))
    with caplog.at_level(logging.WARNING, "fivefold"):
        records = list(reader(path, allowed=1))
    assert [record["text"] for record in records] == [page.text for page in pages[: len(records)]]
    assert f"behind page {len(records)}" in caplog.text


def test_a_broken_page_costs_that_page_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second, third = articles(3)
    path = tmp_path / "a.xml"
    path.write_text(dump_text([first, second, third]).replace(page_text(second), "<page><title>\x05</page>"))
    with caplog.at_level(logging.WARNING, "fivefold"):
        assert [record["title"] for record in reader(path, allowed=1)] == [first.title, third.title]
    assert f"{path}: page 2: not XML" in caplog.text


def test_dumps_that_say_less_or_more(tmp_path: Path) -> None:
    """Old ones have no namespace and no redirect element; some have several revisions, the newest last."""
    pages = [Page("甲", "一"), Page("Template:乙", "二"), Page("丙", "#redirect [[甲]]"), Page("丁: 其一", "四")]
    content = dump_text(pages).replace("    <ns>0</ns>\n", "").replace(">一<", ">舊<")
    newer = "<revision><text>新</text></revision>"
    path = tmp_path / "a.xml"
    path.write_text(content.replace("</revision>", f"</revision>{newer}", 1))
    assert [tuple(record.values()) for record in reader(path)] == [("甲", "新"), ("丁: 其一", "四")]


@pytest.mark.parametrize("content", ["<html><page></page></html>", "text", HEAD[:50]])
def test_what_is_no_dump(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(content)
    with pytest.raises(DataError, match=r"a\.xml"):
        list(reader(tmp_path / "a.xml"))


def test_parts_of_a_dump_are_known_by_name() -> None:
    names = ["zhwiki-20240520-pages-articles.xml.bz2", "zhwiki-pages-articles1.xml-p1p187712.bz2", "a.xml", "A.XML.GZ"]
    assert [file_kind(Path(name)) for name in names] == ["wiki"] * 4
    assert file_kind(Path("a.xmlx")) is None


def test_memory_does_not_grow_with_the_dump(tmp_path: Path) -> None:
    peaks = []
    for count in (300, 1500):
        path = write_dump(tmp_path / f"{count}.xml.bz2", (Page(str(n), f"text {n} " * 2000) for n in range(count)))
        tracemalloc.start()
        assert sum(1 for _ in reader(path)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # A chunk of a megabyte, held a few times; the dumps are 6 and 30 MB.
    assert peaks[1] < peaks[0] + 1e6 < 10e6
