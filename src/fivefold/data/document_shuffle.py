"""Shuffle documents in bounded memory."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def shuffled(documents: Iterable[NDArray], buffer_tokens: int, seed: int) -> Iterator[NDArray]:
    """Hold documents back up to a number of tokens and let a random one go for each that comes in.

    Args:
        documents: token ids of each document.
        buffer_tokens: tokens to hold; 0 keeps the order. A corpus that fits is shuffled uniformly.
        seed: decides the order.
    """
    generator = np.random.default_rng(seed)
    held: list[NDArray] = []
    num_tokens = 0
    for document in documents:
        held.append(document)
        num_tokens += len(document)
        while num_tokens > buffer_tokens:
            place = int(generator.integers(len(held)))
            held[place], held[-1] = held[-1], held[place]
            chosen = held.pop()
            num_tokens -= len(chosen)
            yield chosen
    for place in generator.permutation(len(held)) if buffer_tokens else range(len(held)):
        yield held[place]
