"""Tokenise batches of text in several processes, keeping their order."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

import numpy as np
from numpy.typing import NDArray

Encoder = Callable[[Sequence[str]], list[NDArray[np.int32]]]
"""Texts to the token ids of each."""

_encoder_of_this_process: Encoder | None = None


def encoded(
    batches: Iterable[list[str]], encode: Encoder, num_workers: int
) -> Iterator[tuple[list[str], list[NDArray[np.int32]]]]:
    """Each batch with the ids of its texts, in order.

    Args:
        batches: lists of texts; read only a few batches ahead.
        encode: picklable if there are workers.
        num_workers: processes; 0 encodes here.
    """
    if num_workers == 0:
        for texts in batches:
            yield texts, encode(texts)
        return
    # "spawn": a fork would copy the locks of the tokenizer's and torch's threads as they happen to stand.
    context = multiprocessing.get_context("spawn")
    waiting: deque[tuple[list[str], Future[list[NDArray[np.int32]]]]] = deque()
    with ProcessPoolExecutor(num_workers, context, _start_worker, (encode,)) as workers:
        for texts in batches:
            waiting.append((texts, workers.submit(_encode_here, texts)))
            if len(waiting) > 2 * num_workers:
                done_texts, future = waiting.popleft()
                yield done_texts, future.result()
        for done_texts, future in waiting:
            yield done_texts, future.result()


def _start_worker(encode: Encoder) -> None:
    global _encoder_of_this_process
    # The library's own switch: its threads would fight with those of the other workers for the cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder_of_this_process = encode


def _encode_here(texts: list[str]) -> list[NDArray[np.int32]]:
    assert _encoder_of_this_process is not None
    return _encoder_of_this_process(texts)
