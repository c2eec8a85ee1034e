"""The paper index names every paper that the code names, and only files, recipes, flags and verbs that exist."""

import dataclasses
import importlib
import re
import typing
from pathlib import Path

from fivefold.cli import VERBS
from fivefold.t5.config import T5Config

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "fivefold"
INDEX = (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
# The sentence about how to read the page quotes what it explains.
QUOTED = re.findall(r"`([^`]+)`", INDEX.partition("## ")[2])
ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


def test_every_paper_that_the_code_names_is_there():
    named = {number for path in PACKAGE.rglob("*.py") for number in _arxiv_numbers(path)}
    assert named - set(ARXIV.findall(INDEX)) == set()


def _arxiv_numbers(path):
    # A line break may stand between "arXiv" and the number.
    return re.findall(r"arXiv[:\s]\s*(\d{4}\.\d{5})", path.read_text(encoding="utf-8"))


def test_every_file_and_recipe_exists():
    files = [name for name in QUOTED if "/" in name or name.endswith((".py", ".yaml"))]
    assert files
    assert [name for name in files if not ((PACKAGE / name).is_file() or (ROOT / name).is_file())] == []
    assert [name for name in re.findall(r"\]\(([^)]+)\)", INDEX) if not (ROOT / "docs" / name).is_file()] == []


def test_every_flag_verb_and_field_exists():
    others = [name for name in QUOTED if "/" not in name]
    pretrain = importlib.import_module("fivefold.commands.pretrain").run
    groups = [hint for hint in typing.get_type_hints(pretrain).values() if dataclasses.is_dataclass(hint)]
    flags = {field.name for group in groups for field in dataclasses.fields(group)}
    for name in others:
        if name.startswith("fivefold "):
            assert any(name.startswith(f"fivefold {verb}") for verb in VERBS), name
        elif name.startswith("--"):
            assert set(re.findall(r"--(\w+)", name)) <= flags, name
        else:
            assert name in T5Config.__annotations__, name
