"""`fivefold prepare` without a tokenizer, and with cleaning: what it writes, says and refuses, also after kill -9."""

import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from wiki_dump import articles, with_others, write_dump

from fivefold.cli import main
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.tokenizer.load import load_tokenizer


def prepare(*words: str | Path) -> int:
    return main(["prepare", *map(str, words)])


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    return write_dump(tmp_path / "zhwiki-pages-articles.xml.bz2", with_others(articles(60)))


def test_from_a_dump_to_documents_to_a_tokenizer_to_tokens(dump: Path, tmp_path: Path, capsys) -> None:
    documents, tokenizer, tokens = (tmp_path / name for name in ("documents", "tokenizer", "tokens"))
    flags = ("--normalise", "nfkc", "--simplified", "--min_characters", 30, "--deduplicate", "near", "--language", "zh")
    assert prepare("--data", dump, "--output_dir", documents, *flags) == 0
    said = capsys.readouterr().out
    assert "documents    60 of 60 kept" in said
    assert "left out     15 redirects, 12 pages that are no articles" in said
    assert "MB/s" in said
    assert len(list(open_corpus(CorpusSettings(data=[str(documents)])))) == 60
    words = ["--data", documents, "--output_dir", tokenizer, "--vocab_size", 800, "--num_sentinels", 20]
    assert main(["tokenizer", *map(str, words)]) == 0
    assert prepare("--data", documents, "--tokenizer", tokenizer, "--output_dir", tokens, "--validation_frac", 0.2) == 0
    straight = tmp_path / "straight"
    flags += ("--tokenizer", tokenizer, "--validation_frac", 0.2, "--num_workers", 1)
    assert prepare("--data", dump, "--output_dir", straight, *flags) == 0
    assert "left out     15 redirects" in capsys.readouterr().out
    for split in ("train", "validation"):
        one, other = ((folder / split / "tokens_00000.bin").read_bytes() for folder in (tokens, straight))
        assert sha256(one).digest() == sha256(other).digest()
    assert load_tokenizer(tokens / "tokenizer")


def test_cleaning_reaches_validation_data_and_duplicates_of_them(tmp_path: Path, capsys) -> None:
    (tmp_path / "train.txt").write_text("這是第一句話。\n这是第二句话。\n這是第三句話。\n")
    (tmp_path / "validation.txt").write_text("這是第二句話。\n")
    (tmp_path / "t").mkdir()
    words = [
        "--data",
        tmp_path / "train.txt",
        "--output_dir",
        tmp_path / "t",
        "--vocab_size",
        400,
        "--num_sentinels",
        9,
    ]
    assert main(["tokenizer", *map(str, words)]) == 0
    flags = ("--tokenizer", tmp_path / "t", "--simplified", "--deduplicate", "exact", "--output_dir", tmp_path / "out")
    files = ("--data", tmp_path / "train.txt", "--validation_data", tmp_path / "validation.txt")
    assert prepare(*files, *flags) == 0
    said = capsys.readouterr().out
    assert "train        2 documents" in said
    assert "left out     1 equal to an earlier one" in said


def test_a_dry_run_says_what_would_be_done(dump: Path, tmp_path: Path, capsys) -> None:
    assert prepare("--data", dump, "--output_dir", tmp_path / "out", "--simplified", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "cleaning     simplified True" in said
    assert f"would write  {tmp_path / 'out'}" in said
    assert list(tmp_path.iterdir()) == [dump]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--validation_frac", "0.1"], "validation_frac would change nothing with documents without --tokenizer"),
        (["--seed", "1", "--tokens_per_shard", "5"], "--seed and --tokens_per_shard would change nothing"),
        (["--tokenizer", "t", "--resume"], "--resume goes on with clean documents"),
        (["--resume"], "No interrupted run left documents"),
        (["--resume", "--overwrite"], "give one of them"),
        (["--language", "cn"], "language 'cn' is none that py3langid knows"),
        (["--deduplicate", "fuzzy"], "it takes one of none, exact, near"),
        (["--near_threshold", "0.9"], "--deduplicate none has no near_threshold"),
        (["--max_characters", "0"], "no document can be both"),
        (["--min_characters", "100000"], "No document is left of 60: 60 too short"),
        (["--data", "CUT"], "the dump is cut off there"),
        (["--data", "HTML"], "is no MediaWiki dump"),
        (["--output_dir", "INPUT", "--overwrite"], "is what is read"),
        (["--output_dir", "OTHER", "--overwrite"], "holds something else than prepared tokens"),
    ],
)
def test_what_cannot_work_ends_with_one_sentence(flags, sentence, dump: Path, tmp_path: Path, capsys) -> None:
    cut, html, other, folder = (tmp_path / name for name in ("cut.xml", "page.xml", "other", "input"))
    cut.write_text("<mediawiki>\n<page><ns>0</ns><title>甲</title></page>\n<page>")
    html.write_text("<html></html>")
    for path in (other, folder):
        path.mkdir()
        (path / "a.txt").write_text("text\n")
    places = {"CUT": cut, "HTML": html, "INPUT": folder, "OTHER": other}
    given = {"--data": folder if "INPUT" in flags else dump, "--output_dir": tmp_path / "out"}
    words = [str(places.get(word, word)) for word in flags]
    for name, value in given.items():
        if name not in words:
            words += [name, str(value)]
    before = sorted(tmp_path.rglob("*"))
    assert prepare(*words) == 2
    captured = capsys.readouterr().err
    assert sentence in captured
    assert "Traceback" not in captured
    assert sorted(tmp_path.rglob("*")) == before


PROGRAM = """
import sys
import fivefold.data.prepared_documents as module
from fivefold.cli import main
module.SHARD_BYTES = 200_000
sys.exit(main(sys.argv[1:]))
"""


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dump(tmp_path / "a.xml", articles(4000))
    command = ["prepare", "--data", tmp_path / "a.xml", "--simplified", "--deduplicate", "near", "--output_dir"]
    killed = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, command), str(tmp_path / "out")], stderr=subprocess.DEVNULL
    )
    state = tmp_path / ".out.unfinished" / "state.json"
    for _ in range(6000):
        if state.exists() or killed.poll() is not None:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr("fivefold.data.prepared_documents.SHARD_BYTES", 200_000)
    assert main([*map(str, command), str(tmp_path / "out"), "--resume"]) == 0
    assert main([*map(str, command), str(tmp_path / "whole")]) == 0
    found = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole")]
    assert found[0] == found[1]
    assert len(found[0]) > 4
