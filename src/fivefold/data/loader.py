"""Batches for one process of a run, made in the background."""

import queue
import threading
import weakref
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fivefold.data.batch_plan import BatchPlan
from fivefold.data.source import Source

if TYPE_CHECKING:
    import torch


class Step(NamedTuple):
    """What one optimizer step of one process works on."""

    micro_batches: list[dict[str, "torch.Tensor"]]
    """One dict of int64 tensors for each accumulation step."""
    source_state: dict[str, Any]
    """The source's state once this step is done; empty unless it is a stream."""


class BatchLoader:
    """Iterates over steps for ever, a few steps ahead of its reader.

    Use it as a context manager, or call `close`; it also closes itself when it is collected or the interpreter ends.

    Args:
        source: where batches come from; to resume a stream, load its state first. The loader's thread owns it from
            now on.
        plan: the division of the global batch.
        rank: which process this is.
        first_step: the step to begin with.
        prefetch: steps that may wait ready.
    """

    def __init__(self, source: Source, plan: BatchPlan, *, rank: int = 0, first_step: int = 0, prefetch: int = 2):
        """Start the thread."""
        self._steps: queue.Queue[Step | BaseException] = queue.Queue(prefetch)
        self._stop = threading.Event()
        # The thread must not hold the loader, or the loader would never be collected.
        self._thread = threading.Thread(
            target=_produce,
            args=(source, plan, rank, first_step, self._steps, self._stop),
            name="fivefold-loader",
            daemon=True,
        )
        self._thread.start()
        self._finalize = weakref.finalize(self, _shut_down, self._thread, self._stop)

    def __iter__(self) -> Iterator[Step]:
        """The loader is its own iterator."""
        return self

    def __next__(self) -> Step:
        """The next step.

        Raises:
            Whatever the source raised in the background.
        """
        if self._stop.is_set():
            raise StopIteration
        step = self._steps.get()
        if isinstance(step, BaseException):
            self.close()
            raise step
        return step

    def close(self) -> None:
        """Stop the thread and wait for it."""
        self._finalize()

    def __enter__(self) -> "BatchLoader":
        """Give the loader itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()


def evaluation_batches(
    source: Source, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
) -> Iterator[dict[str, "torch.Tensor"]]:
    """The first samples of a source, each exactly once over all processes.

    Args:
        source: where batches come from.
        num_samples: samples over all processes.
        batch_size: rows in a batch; the last one of a process may have fewer.
        rank: which process this is.
        world_size: processes; each takes a stretch of its own.
    """
    mine = np.array_split(np.arange(num_samples), world_size)[rank]
    for start in range(0, len(mine), batch_size):
        yield tensors(source.batch(mine[start : start + batch_size]))


def tensors(batch: dict[str, NDArray[np.int64]]) -> dict[str, "torch.Tensor"]:
    """The same batch as torch tensors that share its memory."""
    import torch

    return {name: torch.from_numpy(array) for name, array in batch.items()}


def _produce(
    source: Source,
    plan: BatchPlan,
    rank: int,
    first_step: int,
    steps: "queue.Queue[Step | BaseException]",
    stop: threading.Event,
) -> None:
    """The thread: put steps into the queue until told to stop; an exception is the last thing put."""
    try:
        for step in count(first_step):
            micro_batches = [tensors(source.batch(sample_ids)) for sample_ids in plan.sample_ids(step, rank)]
            if not _put(Step(micro_batches, source.state_dict()), steps, stop):
                return
    except BaseException as error:
        _put(error, steps, stop)


def _put(item: Step | BaseException, steps: "queue.Queue[Step | BaseException]", stop: threading.Event) -> bool:
    """Wait for room, but not for a reader who has gone."""
    while not stop.is_set():
        try:
            steps.put(item, timeout=0.1)
            return True
        except queue.Full:
            continue
    return False


def _shut_down(thread: threading.Thread, stop: threading.Event) -> None:
    stop.set()
    if thread is not threading.current_thread():
        # A thread that waits for the network may take long; it is a daemon and can be left behind.
        thread.join(timeout=5.0)
