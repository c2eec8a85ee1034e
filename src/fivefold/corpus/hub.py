"""Records out of Hub data sets, resumable at any record, through the `datasets` library."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fivefold.corpus.files import Record
from fivefold.errors import DataError


@dataclass(frozen=True)
class HubDataset:
    """A data set on the Hub."""

    hub_id: str
    config: str | None
    split: str


class HubReader:
    """The records of one Hub data set, from a position on.

    Args:
        dataset: which data set; anything `datasets.load_dataset` opens, a local folder too.
        streaming: read it over the network as it comes, or download it whole first.
        position: where to begin, as `position` gave it.
    """

    def __init__(self, dataset: HubDataset, *, streaming: bool, position: dict[str, Any] | None = None) -> None:
        self.dataset = dataset
        self.streaming = streaming
        self._start = position or {"number": 0, "stream": None}
        self._number: int = self._start["number"]
        self._stream: Any = None

    @property
    def position(self) -> dict[str, Any]:
        """The place behind the record that was given last."""
        if self._stream is None:
            return self._start
        return {"number": self._number, "stream": self._stream.state_dict()}

    @property
    def where(self) -> str:
        """The record that was given last, for a message."""
        return f"{self.dataset.hub_id}: record {self._number}"

    def __iter__(self) -> Iterator[Record]:
        self._stream = self._open()
        # The library and its file systems raise dozens of kinds of errors, some of them only while reading.
        try:
            if self._start["stream"] is not None:
                self._stream.load_state_dict(self._start["stream"])
            for record in self._stream:
                self._number += 1
                yield record
        except Exception as error:
            raise DataError(
                f"reading {self.dataset.hub_id} stopped after {self._number} records ({reason(error)})."
            ) from error

    def _open(self) -> Any:
        import datasets

        hub_id, config, split = self.dataset.hub_id, self.dataset.config, self.dataset.split
        try:
            opened: Any = datasets.load_dataset(hub_id, config, split=split, streaming=self.streaming)
        except Exception as error:
            raise DataError(
                f"{hub_id!r} is no local path and no catalogue name, and as a Hub data set it cannot be opened "
                f"({reason(error)}): check the spelling, --data_config, --data_split and the network."
            ) from error
        return opened if self.streaming else opened.to_iterable_dataset()


def reason(error: Exception) -> str:
    """The first line of an error's message, with its kind."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
