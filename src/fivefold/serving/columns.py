"""Texts that grow beside each other in a terminal; elsewhere, one below the other once they are done."""

from types import TracebackType

from rich.columns import Columns as Beside
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

_WIDTH = 28
"""Characters that a column needs to be read."""


class Columns:
    """A context manager; what was shown last stays.

    Args:
        texts: how they begin.
        is_live: whether they are shown as they grow.
    """

    def __init__(self, texts: list[str], *, is_live: bool) -> None:
        self._console = Console(highlight=False)
        beside = max(1, min(len(texts), self._console.width // _WIDTH))
        self._width = self._console.width // beside
        self._texts = texts
        self._live = Live(console=self._console, refresh_per_second=12) if is_live else None

    def __enter__(self) -> "Columns":
        """Begin to show."""
        if self._live is not None:
            self._live.start()
        return self

    def show(self, texts: list[str]) -> None:
        """Show these now."""
        self._texts = texts
        if self._live is not None:
            panels = [Panel(Text(text), title=str(n), width=self._width) for n, text in enumerate(texts, 1)]
            self._live.update(Beside(panels, padding=0))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Show the rest."""
        if self._live is not None:
            self._live.stop()
        elif kind is None:
            for number, text in enumerate(self._texts, 1):
                print(f"{number}  {text}", flush=True)
