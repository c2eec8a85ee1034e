"""A local Ray writes the same files as this process does, goes on with what it left, and stops as clearly."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from wiki_dump import articles, with_others, write_dump

from fivefold.cli import main

pytestmark = pytest.mark.slow

# Small pieces, so that there are several of everything; stopped where one shard is whole, if asked to.
PROGRAM = """
import sys
import fivefold.corpus.batches, fivefold.corpus.ray_engine, fivefold.data.prepared_documents as module
from fivefold.cli import main
stop, *words = sys.argv[1:]
fivefold.corpus.ray_engine.BLOCK_BYTES = 100_000
module.SHARD_BYTES = 400_000
if stop == "stop":
    finish = module.ShardWriter.finish
    def interrupt(self):
        if self._number == 1:
            raise KeyboardInterrupt
        return finish(self)
    module.ShardWriter.finish = interrupt
sys.exit(main(words))
"""
FLAGS = ["--simplified", "--deduplicate", "near", "--min_characters", "50", "--max_bad_lines", "2"]


def prepare(stop: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, stop, "prepare", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "input"
    folder.mkdir()
    pages = list(articles(1500))
    write_dump(folder / "a.xml.bz2", with_others(pages[:900]))
    write_dump(folder / "b.xml", with_others([*pages[900:], *pages[:50]]))
    records = [json.dumps({"text": f"第{number}篇文章。" * 20}) for number in range(30)]
    (folder / "c.jsonl").write_text("\n".join([*records[:9], "{", *records[9:], "["]) + "\n")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_files_as_without(data: Path, tmp_path: Path) -> None:
    for name, more in (("local", []), ("ray", ["--engine", "ray"])):
        done = prepare("no", "--data", data, "--output_dir", tmp_path / name, *FLAGS, *more)
        assert done.returncode == 0, done.stderr
        assert "50 equal to an earlier one" in done.stdout
        assert "2 broken lines" in done.stdout
    assert files(tmp_path / "local") == files(tmp_path / "ray")
    assert len(files(tmp_path / "ray")) >= 3
    out = tmp_path / "resumed"
    stopped = prepare("stop", "--data", data, "--output_dir", out, *FLAGS, "--engine", "ray")
    assert stopped.returncode == 130
    assert "--resume goes on" in stopped.stderr
    resumed = prepare("no", "--data", data, "--output_dir", out, *FLAGS, "--engine", "ray", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert files(out) == files(tmp_path / "local")


def test_bad_data_end_with_one_sentence(data: Path, tmp_path: Path) -> None:
    (data / "b.xml").write_text((data / "b.xml").read_text()[:-500])
    done = prepare("no", "--data", data / "b.xml", "--output_dir", tmp_path / "out", "--engine", "ray")
    assert done.returncode == 2
    assert "the dump is cut off there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_workers_are_rays_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["prepare", "--data", "zh_reviews", "--output_dir", str(tmp_path), "--engine", "ray", "--num_workers", "2"]
    assert main(words) == 2
    assert "num_workers would change nothing with --engine ray" in capsys.readouterr().err
