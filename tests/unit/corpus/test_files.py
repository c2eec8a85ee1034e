"""Readers of single files: every format gives the same records, and goes on exactly where it stopped."""

import json
import logging
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fivefold.corpus.bad_lines import BadLines
from fivefold.corpus.files import FileReader, Record, file_kind
from fivefold.errors import DataError

TEXTS = ["one", "  two\t", "三 。", "", "fünf 👩‍👧", "six", "x" * 3000]
RECORDS = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]


def write_lines(path: Path) -> None:
    write_bytes(path, "".join(f"{text}\n" for text in TEXTS).encode())


def write_json_lines(path: Path) -> None:
    write_bytes(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode())


def write_json_list(path: Path) -> None:
    write_bytes(path, json.dumps(RECORDS, indent=1).encode())


def write_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path, row_group_size=3)


def write_bytes(path: Path, content: bytes) -> None:
    compression = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=compression) as stream:
        stream.write(content)


FORMATS: dict[str, Callable[[Path], None]] = {
    f"a{kind}{packing}": write
    for kind, write in {".txt": write_lines, ".jsonl": write_json_lines, ".json": write_json_list}.items()
    for packing in ("", ".gz", ".zst", ".bz2")
} | {"a.parquet": write_parquet}


def reader(
    path: Path, *, position: tuple[int, ...] | list[int] = (), unit: str = "line", allowed: int = 0
) -> FileReader:
    return FileReader(
        path, text_unit=unit, text_field="text", fields=["text"], bad_lines=BadLines(allowed), position=position
    )


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_records(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    records = list(reader(tmp_path / name))
    assert [record["text"] for record in records] == TEXTS
    if ".txt" not in name:
        assert records == RECORDS


@pytest.mark.parametrize("name", FORMATS)
def test_a_reader_started_at_any_position_gives_the_rest(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    whole = reader(tmp_path / name)
    seen: list[tuple[list[int], Record]] = [(whole.position, {})]
    seen += [(whole.position, record) for record in whole]
    for number, (position, _) in enumerate(seen):
        rest = list(reader(tmp_path / name, position=position))
        assert rest == [record for _, record in seen[number + 1 :]]


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
def test_units_of_plain_text(unit: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\none\r\ntwo\n\n \n\nthree\x0bstill\nfour")
    expected = {
        "line": ["", "", "one", "two", "", " ", "", "three\x0bstill", "four"],
        "paragraph": ["one\ntwo", "three\x0bstill\nfour"],
        "file": ["\n\none\ntwo\n\n \n\nthree\x0bstill\nfour"],
    }
    assert [record["text"] for record in reader(path, unit=unit)] == expected[unit]


def test_paragraphs_resume(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"first {n}\nsecond {n}" for n in range(5)))
    whole = reader(path, unit="paragraph")
    for number, _ in enumerate(whole):
        rest = reader(path, unit="paragraph", position=whole.position)
        assert [record["text"][6] for record in rest] == [str(n) for n in range(number + 1, 5)]


BROKEN = {
    b'{"text": "caf\xe9"}': "not UTF-8",
    b'{"text": "cut off': "not JSON",
    b"[" * 100_000: "not JSON",
    b'["text"]': "a JSON list",
    b"17": "a JSON int",
}


@pytest.mark.parametrize(("line", "reason"), BROKEN.items(), ids=["utf8", "cut", "deep", "list", "number"])
def test_broken_lines_are_reported_and_skipped(
    line: bytes, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n' + line + b'\n\n{"text": "two"}\n')
    with caplog.at_level(logging.WARNING, "fivefold"):
        assert [record["text"] for record in reader(path, allowed=1)] == ["one", "two"]
    assert f"{path}:2: {reason}" in caplog.text
    with pytest.raises(DataError, match=rf"a\.jsonl:2: {reason}.*line number 1 and|a\.jsonl:2: {reason}.*number 1, "):
        list(reader(path))


def test_the_last_line_of_too_many_is_named_with_their_count(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" + b"\xff\n" * 5)
    with pytest.raises(DataError, match=r"a\.txt:5: .*broken line number 4, --max_bad_lines allows 3"):
        list(reader(path, allowed=3))


def test_items_of_a_json_list_that_are_no_objects(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"}, "two", {"text": "three"}]')
    assert [record["text"] for record in reader(path, allowed=1)] == ["one", "three"]
    assert "a.json: item 2: a JSON str" in caplog.text


def test_a_json_file_of_lines_is_read_by_lines(tmp_path: Path) -> None:
    write_json_lines(tmp_path / "a.json")
    assert list(reader(tmp_path / "a.json")) == RECORDS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", b'[{"text": "one"}, {"text": '),
        ("a.json", b'[{"text": "one"}'),
        ("a.json", b'[{"text": "caf\xe9"}]'),
        ("a.txt.gz", b"not gzip"),
        ("a.txt.zst", b"not zstandard"),
        ("a.parquet", b"not parquet"),
    ],
)
def test_broken_files(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(reader(path))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.jsonl.bz2", "a.parquet"])
def test_a_file_that_was_cut_off_is_an_error(name: str, tmp_path: Path) -> None:
    FORMATS[name](tmp_path / name)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match=name):
        list(reader(path))


def test_a_parquet_file_without_the_field(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"content": ["one"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text', only content"):
        list(reader(tmp_path / "a.parquet"))


def test_several_members_in_one_compressed_file(tmp_path: Path) -> None:
    for suffix in (".gz", ".zst", ".bz2"):
        path = tmp_path / f"a.txt{suffix}"
        write_bytes(path, b"one\n")
        path.write_bytes(path.read_bytes() * 3)
        assert [record["text"] for record in reader(path)] == ["one"] * 3


@pytest.mark.parametrize("name", ["a.txt.zst", "a.jsonl", "a.json", "a.parquet"])
def test_memory_does_not_grow_with_the_file(name: str, tmp_path: Path) -> None:
    records = [{"text": f"{number} " + "text " * 400} for number in range(8_000)]  # 16 MB
    path = tmp_path / name
    if name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=500)
    elif name == "a.json":
        path.write_text(json.dumps(records))
    else:
        lines = (json.dumps(record) if name == "a.jsonl" else record["text"] for record in records)
        write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
    del records
    tracemalloc.start()
    assert sum(1 for _ in reader(path)) == 8_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A chunk of a JSON list is a million characters, held about three times; whole, the file would take 16 MB and more.
    assert peak < 6e6


def test_kinds_by_name() -> None:
    names = ["a.txt", "A.TXT.GZ", "b.v2.jsonl.zst", "c.json", "d.parquet"]
    assert all(file_kind(Path(name)) for name in names)
    assert not any(file_kind(Path(name)) for name in ["a", "a.gz", "a.tar.gz", "a.csv", "d.parquet.gz", ".txt"])
