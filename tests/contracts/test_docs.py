"""Python in the documentation of the methods runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("docs/methods/parts.md", "docs/methods/dpo.md")
BLOCKS = [
    (page, block)
    for page in PAGES
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), BLOCKS, ids=range(len(BLOCKS)))
def test_it_runs(page, block):
    names: dict = {}
    exec(compile(block, page, "exec"), names)
    assert all(value.isfinite().all() for name, value in names.items() if name in ("x", "loss"))
