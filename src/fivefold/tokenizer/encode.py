"""Corpus text to token ids: plain text only, nothing added, in fast batches."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

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

    def __call__(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """The ids of each text, without `</s>`."""
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
