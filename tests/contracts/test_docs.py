"""Python in the documentation of the parts runs as it stands."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = "docs/methods/parts.md"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / PAGE).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_it_runs(block):
    names: dict = {}
    exec(compile(block, PAGE, "exec"), names)
    assert all(value.isfinite().all() for name, value in names.items() if name in ("x", "loss"))
