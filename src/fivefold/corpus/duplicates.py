"""Documents that are there already: equal ones by a hash, nearly equal ones by MinHash signatures in bands."""

from array import array
from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SHINGLE_CHARACTERS = 5
NUM_HASHES = 128
NUM_BANDS = 16
MOST_ROWS = NUM_HASHES // NUM_BANDS
# Bands are as long as they may be if a pair at the threshold shall share one with this probability.
LEAST_FOUND = 0.9
# Documents that share a band and are not near: text from a form, say. More than this many need not be compared.
LONGEST_CHAIN = 64
SEED = 5
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def text_digest(text: str) -> int:
    """A 64-bit hash of a text, the same on every machine and in every run."""
    # A surrogate left over from broken JSON escapes cannot be encoded strictly, and need not be here.
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def shingle_hashes(text: str) -> NDArray[np.uint64]:
    """A hash of each stretch of five characters, letters in lower case and white space left out.

    Characters and not words, because Chinese does not separate words.
    """
    squeezed = "".join(text.lower().split()).ljust(SHINGLE_CHARACTERS)
    codes = np.frombuffer(squeezed.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    count = len(codes) - SHINGLE_CHARACTERS + 1
    hashes = np.zeros(count, np.uint64)
    for place in range(SHINGLE_CHARACTERS):  # a polynomial modulo 2^64
        hashes = hashes * MULTIPLIER + codes[place : place + count]
    return hashes


class Signature(NamedTuple):
    """What is remembered of a document."""

    bands: NDArray[np.uint64]
    """[16] hashes: equal ones point to documents that may be near."""
    minima: bytes
    """[128] the lowest byte of each smallest hash: the share of equal ones estimates the overlap of two documents."""


def signatures(texts: list[str], threshold: float) -> list[Signature]:
    """The MinHash signatures of documents.

    Source: Broder 1997; bands as in Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.

    Args:
        texts: documents.
        threshold: share of common shingles (Jaccard) from which on documents are near; decides how long bands are.

    Cost: about 10 MB of text a second.
    """
    from rensa import RMinHash  # type: ignore[attr-defined]

    hashes = [shingle_hashes(text) for text in texts]
    borders = np.cumsum([0, *map(len, hashes)]).tolist()
    flat = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, borders, NUM_HASHES, SEED)
    minima = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), NUM_HASHES)
    rows = band_rows(threshold)
    grouped = minima[:, : NUM_BANDS * rows].reshape(-1, NUM_BANDS, rows)
    bands = np.broadcast_to(np.arange(NUM_BANDS, dtype=np.uint64), grouped.shape[:2]).copy()
    for row in range(rows):
        bands = (bands ^ (bands >> np.uint64(32))) * MULTIPLIER + grouped[:, :, row]
    bands = (bands ^ (bands >> np.uint64(29))) * MULTIPLIER
    return [Signature(keys, low.tobytes()) for keys, low in zip(bands, minima.astype(np.uint8), strict=True)]


def band_rows(threshold: float) -> int:
    """How many hashes make a band."""
    found = (rows for rows in range(MOST_ROWS, 1, -1) if 1 - (1 - threshold**rows) ** NUM_BANDS >= LEAST_FOUND)
    return next(found, 1)


class NearDuplicates:
    """The documents so far, to ask whether a new one is near any of them.

    Args:
        threshold: estimated share of common shingles (Jaccard) from which on two documents are near.

    Cost: about 10 microseconds and 300 to 600 bytes a document, however long it is.
    """

    def __init__(self, threshold: float) -> None:
        self._most_different = NUM_HASHES - int(np.ceil(threshold * NUM_HASHES))
        self._minima = bytearray()
        self._num_documents = 0
        self._num_entries = 0
        self._allocate(1 << 12)

    def _allocate(self, capacity: int) -> None:
        # Open addressing: plain arrays take a quarter of what dictionaries of numbers would.
        self._keys = array("Q", bytes(8 * capacity))
        self._documents = array("I", bytes(4 * capacity))  # number + 1; 0 is a free place
        self._mask = capacity - 1

    def add_new(self, signature: Signature) -> bool:
        """Whether a document is near none so far; if so, it is one of them from now on."""
        keys: list[int] = signature.bands.tolist()
        places: list[int] = []
        seen: set[int] = set()
        for key in keys:
            place, chain = key & self._mask, 0
            while document := self._documents[place]:
                if self._keys[place] == key:
                    if document not in seen and self._is_near(document - 1, signature.minima):
                        return False
                    seen.add(document)
                    chain += 1
                place = (place + 1) & self._mask
            places.append(place if chain < LONGEST_CHAIN else -1)
        self._minima += signature.minima
        self._num_documents += 1
        for key, place in zip(keys, places, strict=True):
            if place >= 0:
                self._insert(key, place, self._num_documents)
        if 3 * self._num_entries > 2 * self._mask:
            self._grow()
        return True

    def _is_near(self, document: int, minima: bytes) -> bool:
        start = document * NUM_HASHES
        other = self._minima[start : start + NUM_HASHES]
        different = np.count_nonzero(np.frombuffer(other, np.uint8) != np.frombuffer(minima, np.uint8))
        return int(different) <= self._most_different

    def _insert(self, key: int, place: int, document: int) -> None:
        while self._documents[place]:  # another band of the same document came to lie there
            place = (place + 1) & self._mask
        self._keys[place], self._documents[place] = key, document
        self._num_entries += 1

    def _grow(self) -> None:
        old = zip(self._keys, self._documents, strict=True)
        self._allocate(2 * (self._mask + 1))
        self._num_entries = 0
        for key, document in old:
            if document:
                self._insert(key, key & self._mask, document)
