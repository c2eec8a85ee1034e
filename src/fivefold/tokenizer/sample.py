"""An unbiased sample of a stream of text, of bounded size."""

import heapq
import random
from collections.abc import Iterable
from dataclasses import dataclass

# Long documents are cut, so that one of them can neither fill the sample nor be all or nothing in it.
CHUNK_CHARACTERS = 2_000


@dataclass(frozen=True)
class TextSample:
    """Chunks of text out of a stream, in the stream's order."""

    chunks: list[str]
    read_characters: int
    """Characters that were read."""
    kept_characters: int
    """Characters of the chunks."""
    was_cut: bool
    """Whether the stream went on behind what was read."""


def draw_sample(texts: Iterable[str], *, sample_characters: int, read_characters: int, seed: int) -> TextSample:
    """Keep each chunk of a stream with the same probability, the highest that the budget allows.

    Every chunk draws a number in [0, 1) and the smallest draws stay: the limit below which a draw is kept falls as the
    stream goes on, and what lies above it is given up again. Memory follows the budget, not the length of the stream.

    Args:
        texts: documents.
        sample_characters: characters to keep at most.
        read_characters: characters to read at most.
        seed: of the draws; the same stream and seed give the same sample.
    """
    draws = random.Random(seed)
    kept: list[tuple[float, int, str]] = []  # a heap with the largest draw on top: (-draw, place in the stream, chunk)
    limit = 1.0
    read = held = place = 0
    was_cut = False
    for text in texts:
        if read >= read_characters:
            was_cut = True
            break
        read += len(text)
        for start in range(0, len(text), CHUNK_CHARACTERS):
            place += 1
            draw = draws.random()
            if draw >= limit:
                continue
            chunk = text[start : start + CHUNK_CHARACTERS]
            heapq.heappush(kept, (-draw, place, chunk))
            held += len(chunk)
            while held > sample_characters:
                largest, _, dropped = heapq.heappop(kept)
                limit = -largest
                held -= len(dropped)
    chunks = [chunk for _, _, chunk in sorted(kept, key=lambda item: item[1])]
    return TextSample(chunks, read_characters=read, kept_characters=held, was_cut=was_cut)
