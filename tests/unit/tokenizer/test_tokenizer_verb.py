"""`fivefold tokenizer`, called as the command line calls it."""

from pathlib import Path

import pytest

from fivefold.commands.tokenizer import run
from fivefold.corpus.settings import CorpusSettings
from fivefold.errors import ConfigError, DataError
from fivefold.tokenizer.load import load_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings


@pytest.fixture
def text(tmp_path: Path, small_texts: list[str]) -> str:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(document.replace("\n", " ") for document in small_texts))
    return str(path)


def test_it_trains_saves_and_tells(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer"
    run(CorpusSettings(data=[text]), TokenizerSettings(output_dir=str(out), vocab_size=500), dry_run=False)
    printed = capsys.readouterr()
    result = dict(line.split(maxsplit=1) for line in printed.out.splitlines())
    assert result["vocabulary"] == "500"
    assert result["sample"].startswith("100% of ")
    assert float(result["tokens"].split()[0]) < 1
    assert sum(line.startswith("example") for line in printed.out.splitlines()) == 3
    assert "learning pieces" in printed.err
    assert len(load_tokenizer(out)) == 500


def test_it_says_what_it_left_out(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    total = sum(len(line) for line in Path(text).read_text().splitlines())
    settings = TokenizerSettings(
        output_dir=str(tmp_path / "out"), vocab_size=5000, sample_characters=total // 4, read_characters=total // 2
    )
    run(CorpusSettings(data=[text]), settings, dry_run=False)
    printed = capsys.readouterr().out
    assert "no more pieces for 5,000" in printed
    assert "(stopped there, --read_characters)" in printed
    assert any(f"{percent}% of" in printed for percent in (48, 49, 50))


def test_a_dry_run_checks_and_writes_nothing(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tokenizer"
    settings = TokenizerSettings(output_dir=str(out))
    run(CorpusSettings(data=[text, "zh_reviews", "some/dataset"]), settings, dry_run=True)
    printed = capsys.readouterr().out
    assert "(unchecked: some/dataset)" in printed
    assert "31,610 learned" in printed
    assert not out.exists()
    with pytest.raises(DataError, match="no file, folder or glob"):
        run(CorpusSettings(data=["missing.txt"]), settings, dry_run=True)
    with pytest.raises(ConfigError, match="--vocab_size is 10"):
        run(CorpusSettings(data=[text]), TokenizerSettings(output_dir=str(out), vocab_size=10), dry_run=True)
    with pytest.raises(ConfigError, match="is a file"):
        run(CorpusSettings(data=[text]), TokenizerSettings(output_dir=text), dry_run=True)


def test_nothing_is_written_when_the_data_breaks_off(text: str, tmp_path: Path) -> None:
    with Path(text).open("ab") as file:
        file.write(b"\n\xff\n")
    out = tmp_path / "tokenizer"
    with pytest.raises(DataError, match="not UTF-8"):
        run(CorpusSettings(data=[text]), TokenizerSettings(output_dir=str(out)), dry_run=False)
    assert not out.exists()
