"""Names in --data: local path, then catalogue, then Hub."""

from pathlib import Path

import pytest

from fivefold.corpus.catalogue import CATALOGUE
from fivefold.corpus.hub import HubDataset
from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.sources import check_sources, find_sources
from fivefold.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.jsonl", "deep/er/c.txt.gz", "deep/d.parquet", "deep/.hidden.txt", ".git/e.txt", "f.md"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    (tmp_path / "deep" / "empty.txt").touch()
    return tmp_path


def test_folders_are_read_whole_and_sorted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (files,) = find_sources(CorpusSettings(data=["."]))
    assert [str(path) for path in files] == ["a.jsonl", "b.txt", "deep/d.parquet", "deep/er/c.txt.gz"]  # type: ignore[union-attr]
    assert "empty.txt is empty" in caplog.text


def test_globs_are_sorted(folder: Path) -> None:
    (flat, deep) = find_sources(CorpusSettings(data=["*.*", "**/*.txt*"]))
    assert [str(path) for path in flat] == ["a.jsonl", "b.txt"]  # type: ignore[union-attr]
    assert [str(path) for path in deep] == ["b.txt", "deep/er/c.txt.gz"]  # type: ignore[union-attr]


def test_a_file_whose_name_looks_like_a_glob(folder: Path) -> None:
    (folder / "a[1].txt").write_text("text")
    assert find_sources(CorpusSettings(data=["a[1].txt"])) == [[Path("a[1].txt")]]


def test_local_paths_come_before_the_catalogue_and_that_before_the_hub(folder: Path) -> None:
    settings = CorpusSettings(data=["zh_reviews", "c4_en", "some/dataset"])
    assert find_sources(settings) == [
        CATALOGUE["zh_reviews"],
        HubDataset("allenai/c4", "en", "train"),
        HubDataset("some/dataset", None, "train"),
    ]
    assert check_sources(settings) == ["allenai/c4", "some/dataset"]
    for name in settings.data:
        (folder / name).mkdir(parents=True)
        (folder / name / "a.txt").write_text("text")
    assert find_sources(settings) == [[Path(name, "a.txt")] for name in settings.data]
    assert check_sources(settings) == []


def test_hub_settings(folder: Path) -> None:
    settings = CorpusSettings(data=["wikipedia_en", "a/b"], data_config="20231101.de", data_split="test")
    assert find_sources(settings) == [
        HubDataset("wikimedia/wikipedia", "20231101.de", "test"),
        HubDataset("a/b", "20231101.de", "test"),
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("f.md", "of no kind that can be read"),
        ("deep/empty.txt", "is empty"),
        (".git/none.txt", "no file, folder or glob"),
        ("missing.jsonl", "no file, folder or glob"),
        ("some/missing/folder", "no file, folder or glob"),
        ("./missing", "no file, folder or glob"),
        ("", "no file, folder or glob"),
        ("zh_review", "did you mean 'zh_reviews'"),
        ("*.csv", "holds no file that can be read"),
        ("nothing", "holds no file that can be read"),
    ],
)
def test_what_leads_nowhere(name: str, message: str, folder: Path) -> None:
    (folder / "nothing").mkdir()
    with pytest.raises(DataError, match=message):
        check_sources(CorpusSettings(data=["b.txt", name]))


def test_no_name_at_all() -> None:
    with pytest.raises(ConfigError, match="--data is empty"):
        check_sources(CorpusSettings(data=[]))
