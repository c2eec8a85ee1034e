"""Corpus text to token ids: plain text only, nothing added, in fast batches."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fivefold.tokenizer.special_tokens import sentinel_ids, sentinel_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class CorpusEncoder:
    """A tokenizer for corpus work, where `</s>` or `<extra_id_0>` in a text is text like any other.

    It is a copy: what others set on the tokenizer, such as truncation, does not reach it. It can be pickled, and called
    from several threads.

    Args:
        tokenizer: a tokenizer of the `tokenizers` library.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # type: ignore[attr-defined]
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        # T5's and mT5's own tokenizers also hold these names as ordinary pieces: there they are broken with a space.
        ids = {*tokenizer.all_special_ids, *sentinel_ids(tokenizer).tolist()}.difference([tokenizer.unk_token_id])
        pieces = [name for name in special_names(tokenizer) if ids.intersection(self._ids([f"a {name}"])[0])]
        self._names = re.compile("|".join(map(re.escape, pieces))) if pieces else None

    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of each text, without `</s>`."""
        return [np.array(ids, dtype=np.int32) for ids in self._ids(map(self._disarmed, texts))]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where the characters of each token begin and end; several tokens of one character all have its place."""
        return self._backend.encode(self._disarmed(text), add_special_tokens=False).offsets

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # the one setting that pickling a tokenizer forgets

    def _disarmed(self, text: str) -> str:
        return text if self._names is None else self._names.sub(broken, text)

    def _ids(self, texts: Iterable[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def special_names(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """How the tokens that are not text are written, sentinels included, in order."""
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    sentinels = map(sentinel_name, range(len(sentinel_ids(tokenizer))))
    return sorted({*tokenizer.all_special_tokens, *added, *sentinels})


def broken(name: re.Match[str]) -> str:
    """The name of a special token with a space before its last character, which no tokenizer takes for the token."""
    return f"{name[0][:-1]} {name[0][-1]}"
