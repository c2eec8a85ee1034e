"""Tables in plain text."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells under each other, the first column to the left, numbers to the right.

    Args:
        rows: the first one names the columns; all are equally long.
    """
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ((row[0].ljust(first), *map(str.rjust, row[1:], others)) for row in rows)
    return "\n".join("  ".join(cells).rstrip() for cells in lines)
