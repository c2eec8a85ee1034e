"""Work on batches in several processes, their results in order."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")

_work_of_this_process: Callable[[Any], Any] | None = None


def in_order(batches: Iterable[Given], work: Callable[[Given], Made], num_workers: int) -> Iterator[tuple[Given, Made]]:
    """Each batch with what `work` makes of it, in order.

    Args:
        batches: picklable if there are workers; read only a few ahead.
        work: picklable if there are workers.
        num_workers: processes; 0 works here.
    """
    if num_workers == 0:
        for batch in batches:
            yield batch, work(batch)
        return
    # "spawn": a fork would copy the locks of the tokenizer's and torch's threads as they happen to stand.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[Given, Future[Made]]] = deque()
    with ProcessPoolExecutor(num_workers, context, _start_worker, (work,)) as workers:
        try:
            for batch in batches:
                waiting.append((batch, workers.submit(_work_here, batch)))
                if len(waiting) > 2 * num_workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _start_worker(work: Callable[[Any], Any]) -> None:
    global _work_of_this_process
    # The library's own switch: its threads would fight with those of the other workers for the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Ctrl-C reaches every process of the terminal; what becomes of it is for the first one to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _work_of_this_process = work


def _work_here(batch: Any) -> Any:
    assert _work_of_this_process is not None
    return _work_of_this_process(batch)
