"""How far long work is, and how long it will take."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SECONDS_BETWEEN_LINES = 20


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar with rate and time left in a terminal, a line now and then elsewhere.

    Args:
        what: is counted, in the plural.

    Yields:
        A function to be told how many more are done, and how many more there are to do.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns: list[Any] = [TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=0, rate="")
        begin = said = time.perf_counter()
        done = total = 0

        def show(more_done: int, more_to_do: int) -> None:
            nonlocal said, done, total
            done, total, now = done + more_done, total + more_to_do, time.perf_counter()
            rate = done / max(now - begin, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:.1f}/s")
            if not console.is_terminal and more_done and now - said > _SECONDS_BETWEEN_LINES:
                said = now
                minutes = (total - done) / rate / 60
                print(f"{done:,}/{total:,} {what}  {rate:.1f}/s  {minutes:.0f} min left", file=sys.stderr, flush=True)

        yield show
