"""Self-supervised samples from text as it is read: tokenised on the way, in order, exactly resumable."""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fivefold.data.corruption import Corruption
from fivefold.data.random_bits import Purpose, random_bits, random_keys
from fivefold.data.rows import ragged_rows, seq2seq_batch
from fivefold.data.source import Source
from fivefold.errors import DataError

Record = dict[str, Any]


class ResumableRecords(Protocol):
    """Records in a fixed order that can be read on from where they were left."""

    def __iter__(self) -> Iterator[Record]:
        """Read on from the present place."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place after the record given last."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place; the next iteration starts there."""
        ...


class TokenStream:
    """An endless stream of tokens: the records' documents end to end, pass after pass.

    Records are read, tokenised and shuffled in blocks. A place in the stream is then small, and exact: the reader's
    place before the block, how far into the block one is, and the few tokens that were left over when the block was
    read.

    Args:
        records: the reader; it belongs to the stream from now on.
        encode: turns records into token ids, one array a document; it may drop some.
        block_size: records read at a time.
        shuffle: put the documents of each block in a random order.
        seed: the run's seed.
        eos_id: an end mark after every document, or None.
    """

    def __init__(
        self,
        records: ResumableRecords,
        encode: Callable[[list[Record]], Sequence[NDArray]],
        *,
        block_size: int,
        shuffle: bool,
        seed: int,
        eos_id: int | None = None,
    ):
        """Read nothing yet."""
        self._records, self._encode, self._block_size = records, encode, block_size
        self._shuffle, self._seed, self._eos_id = shuffle, seed, eos_id
        self._beginning = records.state_dict()
        self._iterator = iter(records)
        self._tokens, self._position = np.zeros(0, np.int64), 0
        self._next_block, self._tokens_in_pass = 0, 0
        self._block_state = self._reader_state()

    def take(self, num_tokens: int) -> NDArray[np.int64]:
        """The next tokens.

        Raises:
            DataError: a whole pass over the records gave no token.
        """
        while len(self._tokens) - self._position < num_tokens:
            self._read_block()
        self._position += num_tokens
        return self._tokens[self._position - num_tokens : self._position]

    def state_dict(self) -> dict[str, Any]:
        """The present place, as plain Python values."""
        return {**self._block_state, "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place: read its block again."""
        self._records.load_state_dict(state["records"])
        self._iterator = iter(self._records)
        self._next_block, self._tokens_in_pass = state["block"], state["tokens_in_pass"]
        self._tokens, self._position = np.array(state["leftover"], np.int64), 0
        if state["position"]:
            self._read_block()
        self._position = state["position"]

    def _reader_state(self) -> dict[str, Any]:
        return {
            "records": self._records.state_dict(),
            "block": self._next_block,
            "tokens_in_pass": self._tokens_in_pass,
            "leftover": self._tokens[self._position :].tolist(),
        }

    def _read_block(self) -> None:
        self._block_state = self._reader_state()
        records = list(islice(self._iterator, self._block_size))
        documents = list(self._encode(records))
        if self._shuffle:
            keys = random_keys(self._seed, Purpose.DOCUMENT_ORDER, self._next_block)
            documents = [documents[place] for place in random_bits(keys, len(documents))[0].argsort()]
        if self._eos_id is not None:
            documents = [np.append(document, self._eos_id) for document in documents]
        leftover = self._tokens[self._position :]
        self._tokens, self._position = np.concatenate([leftover, *documents]).astype(np.int64), 0
        self._next_block += 1
        self._tokens_in_pass += len(self._tokens) - len(leftover)
        if len(records) < self._block_size:
            self._rewind()

    def _rewind(self) -> None:
        if not self._tokens_in_pass:
            raise DataError(
                "The training data held no text to train on; check the paths, the text field and the held-out share."
            )
        self._records.load_state_dict(self._beginning)
        self._iterator, self._tokens_in_pass = iter(self._records), 0


class StreamSource(Source):
    """Samples cut from a token stream one after the other, each as long as its kind needs.

    Sample numbers must rise from call to call. The text of numbers that are left out, those of other processes, is
    passed over.

    Args:
        stream: the tokens.
        corruption: what becomes of a window.
        pad_id: the padding token of inputs.
    """

    def __init__(self, stream: TokenStream, corruption: Corruption, *, pad_id: int):
        """Start at sample 0."""
        self._stream, self._corruption, self._pad_id = stream, corruption, pad_id
        self._next_sample = 0
        self.samples_per_epoch = None

    def describe(self) -> str:
        """What it holds, in half a line."""
        return "a stream of text"

    def batch(self, sample_ids: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """Read, corrupt and pad the samples of these numbers.

        Raises:
            ValueError: the numbers do not rise, or have been passed already.
        """
        if sample_ids[0] < self._next_sample or (np.diff(sample_ids) <= 0).any():
            raise ValueError(f"a stream at sample {self._next_sample} cannot give samples {sample_ids.tolist()}")
        numbers = np.arange(self._next_sample, sample_ids[-1] + 1)
        lengths = self._corruption.window_lengths[self._corruption.kinds(numbers)]
        starts = np.cumsum(lengths) - lengths
        text = self._stream.take(int(lengths.sum()))
        wanted = sample_ids - self._next_sample
        self._next_sample = int(sample_ids[-1]) + 1
        inputs, targets = self._corruption.corrupted(ragged_rows(text, starts[wanted], lengths[wanted]), sample_ids)
        return seq2seq_batch(inputs, targets, self._pad_id)

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream and the next sample's number."""
        return {"stream": self._stream.state_dict(), "next_sample": self._next_sample}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave."""
        self._stream.load_state_dict(state["stream"])
        self._next_sample = state["next_sample"]
