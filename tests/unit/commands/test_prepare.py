"""`fivefold prepare`: what it writes, what it says, what it refuses, and that it leaves nothing half-done."""

import errno
import json
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

from fivefold.cli import main
from fivefold.data.token_writer import TokenWriter
from fivefold.data.tokens import TokenIndex, TokenShards
from fivefold.tokenizer.load import load_tokenizer, tokenizer_fingerprint
from fivefold.tokenizer.save import save_tokenizer
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

TEXTS = [f"story {number}: once upon a time there were {number * 31 % 97} dwarfs" for number in range(2500)]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    settings = TokenizerSettings(output_dir="", vocab_size=500, num_sentinels=100)
    save_tokenizer(train_tokenizer(TEXTS, settings).tokenizer, folder)
    return folder


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "input" / "text.txt"
    path.parent.mkdir()
    path.write_text("\n".join([*TEXTS[:1000], "", *TEXTS[1000:], *TEXTS[:500]]))
    return path


def prepare(*words: str | Path) -> int:
    return main(["prepare", *map(str, words)])


def documents(folder: Path) -> list[str]:
    tokenizer = load_tokenizer(folder.parent / "tokenizer")
    eos_id: int = tokenizer.eos_token_id  # type: ignore[assignment]
    tokens = TokenShards.open(folder, eos_id)
    (ids,) = tokens.windows(np.array([0]), np.array([tokens.num_tokens])).ids
    return tokenizer.decode(ids.tolist()).split("</s>")[:-1]


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}


def test_every_document_lands_in_one_split(tmp_path, text_file, tokenizer_folder, capsys) -> None:
    output = tmp_path / "prepared"
    flags = ("--data", text_file, "--tokenizer", tokenizer_folder, "--validation_frac", 0.1)
    assert prepare(*flags, "--output_dir", output, "--tokens_per_shard", 10_000) == 0
    train, validation = documents(output / "train"), documents(output / "validation")
    assert sorted(train + validation) == sorted(TEXTS + TEXTS[:500])
    assert not set(train) & set(validation), "equal documents share one fate"
    assert 0.05 < len(set(validation)) / 2500 < 0.15

    index = TokenIndex.load(output / "train")
    assert len(index.shards) > 3
    assert index.num_characters == sum(map(len, train))
    assert index.tokenizer_fingerprint == tokenizer_fingerprint(load_tokenizer(output / "tokenizer"))
    assert index.sources == [str(text_file)]
    said = capsys.readouterr().out
    assert f"{len(train):,} documents, {index.num_characters:,} characters, {index.num_tokens:,} tokens" in said
    assert "left out     1 blank" in said
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_result_follows_from_the_seed_not_from_the_workers(tmp_path, text_file, tokenizer_folder) -> None:
    flags = ("--data", text_file, "--tokenizer", tokenizer_folder)
    for name, more in (("a", ()), ("b", ("--num_workers", 2)), ("c", ("--seed", 1))):
        assert prepare(*flags, "--output_dir", tmp_path / name, *more) == 0
    assert checksums(tmp_path / "a") == checksums(tmp_path / "b") != checksums(tmp_path / "c")
    assert sorted(documents(tmp_path / "a" / "train")) == sorted(documents(tmp_path / "c" / "train"))


def test_validation_data_of_its_own_leaves_its_texts_out(tmp_path, text_file, tokenizer_folder, capsys) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n".join([TEXTS[3], TEXTS[2000], "a new one"]))
    output = tmp_path / "prepared"
    flags = ("--data", text_file, "--validation_data", other, "--tokenizer", tokenizer_folder)
    assert prepare(*flags, "--output_dir", output) == 0
    assert sorted(documents(output / "validation")) == sorted([TEXTS[3], TEXTS[2000], "a new one"])
    assert len(documents(output / "train")) == 3000 - 3
    assert "3 training documents that are in the validation data too" in capsys.readouterr().out


def test_broken_lines_are_counted(tmp_path, tokenizer_folder, capsys) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join([*(json.dumps({"text": text}) for text in TEXTS[:300]), "{", '{"title": "x"}']))
    flags = ("--data", path, "--tokenizer", tokenizer_folder, "--validation_frac", 0.1)
    assert prepare(*flags, "--output_dir", tmp_path / "prepared") == 2
    assert not (tmp_path / "prepared").exists()
    assert prepare(*flags, "--output_dir", tmp_path / "prepared", "--max_bad_lines", 2) == 0
    assert "left out     2 broken lines" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path, text_file, tokenizer_folder, capsys) -> None:
    flags = ("--data", text_file, "--tokenizer", tokenizer_folder, "--output_dir", tmp_path / "prepared", "--dry_run")
    assert prepare(*flags) == 0
    assert f"would write  {tmp_path / 'prepared'}" in capsys.readouterr().out
    assert not (tmp_path / "prepared").exists()


def test_no_share_means_no_validation_folder(tmp_path, text_file, tokenizer_folder) -> None:
    flags = ("--data", text_file, "--tokenizer", tokenizer_folder, "--validation_frac", 0)
    assert prepare(*flags, "--output_dir", tmp_path / "prepared") == 0
    assert sorted(path.name for path in (tmp_path / "prepared").iterdir()) == ["tokenizer", "train"]


def test_what_cannot_work_ends_with_one_sentence(tmp_path, text_file, tokenizer_folder, capsys) -> None:
    output = tmp_path / "prepared"
    good = {"data": text_file, "tokenizer": tokenizer_folder, "output_dir": output}
    blank = tmp_path / "blank.txt"
    blank.write_text("\n  \n")
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious").write_text("1")
    for changes, message in (
        ({"data": tmp_path / "nowhere.txt"}, "nowhere.txt"),
        ({"data": blank}, "There is no text for train"),
        ({"tokenizer": tmp_path / "input"}, "holds no tokenizer"),
        ({"validation_frac": 1e-9}, "None of 3,000 documents was held out"),
        ({"validation_frac": 1.5}, "validation_frac is 1.5"),
        ({"validation_data": blank}, "There is no text for validation"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"tokens_per_shard": 0}, "tokens_per_shard is 0"),
        ({"output_dir": text_file}, "is a file"),
        ({"output_dir": full}, "is not empty"),
        ({"output_dir": full, "overwrite": True}, "something else than prepared tokens"),
    ):
        words = [str(word) for name, value in (good | changes).items() for word in (f"--{name}", value)]
        assert prepare(*words) == 2, changes
        captured = capsys.readouterr()
        assert message in captured.err
        assert "Traceback" not in captured.err
    assert not output.exists()
    assert (full / "precious").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"input", "blank.txt", "full"}


def test_prepared_folders_are_replaced_on_request_and_not_prepared_again(
    tmp_path, text_file, tokenizer_folder, capsys
) -> None:
    output = tmp_path / "prepared"
    flags = ("--tokenizer", tokenizer_folder, "--output_dir", output)
    assert prepare("--data", text_file, *flags) == 0
    before = checksums(output)
    assert prepare("--data", text_file, *flags, "--seed", 5) == 2
    assert checksums(output) == before
    assert prepare("--data", text_file, *flags, "--seed", 5, "--overwrite") == 0
    assert checksums(output) != before
    assert prepare("--data", output, "--tokenizer", tokenizer_folder, "--output_dir", tmp_path / "again") == 2
    assert "is prepared already" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing_behind(tmp_path, text_file, tokenizer_folder, monkeypatch, capsys) -> None:
    output = tmp_path / "prepared"
    flags = ("--data", text_file, "--tokenizer", tokenizer_folder, "--output_dir", output)
    assert prepare(*flags) == 0
    before, add = checksums(output), TokenWriter.add

    def fail_in_the_middle(self: TokenWriter, ids: np.ndarray) -> None:
        add(self, ids)
        if self._starts[-1] > 5000:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(TokenWriter, "add", fail_in_the_middle)
    assert prepare(*flags, "--overwrite") == 2
    assert "is full and nothing was written" in capsys.readouterr().err
    assert checksums(output) == before
    assert {path.name for path in tmp_path.iterdir()} == {"input", "prepared"}
