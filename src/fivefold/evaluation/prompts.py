"""Questions as the tokens that a model reads, and answers as those that it writes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from fivefold.errors import DataError
from fivefold.evaluation.superglue.example import Source
from fivefold.models.settings import Family

CUE = "\nanswer:"
"""What a decoder's question ends with; a T5 needs none, for its answers stand elsewhere."""


class Prompts:
    """Texts to tokens and back.

    Args:
        tokenizer: the model's.
        family: of the model. A T5 reads a question with an end mark and writes an answer with one; a decoder goes on
            from the question and the cue, behind a blank.
        input_length: most tokens of a question; of longer ones the passage loses its end. None for no limit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, family: Family, input_length: int | None) -> None:
        self.tokenizer, self._family, self._most = tokenizer, family, input_length
        self._marks = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.num_cut = 0

    def prompt(self, source: Source, shots: str = "") -> tuple[str, NDArray[np.int64]]:
        """A question, as the text that is read and its tokens.

        Args:
            shots: questions with their answers, to read before it.

        Raises:
            DataError: it is too long even without its passage.
        """
        text, ids = self._prompt(source, source.passage, shots)
        if self._most is None or len(ids) <= self._most:
            return text, ids
        self.num_cut += 1
        encoded = self.tokenizer(source.passage, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in encoded["offset_mapping"]]
        keep = len(ends)
        while len(ids) > self._most:
            if not keep:
                raise DataError(
                    f"{text[:60]!r} ... has {len(ids)} tokens even without its passage, but the model reads "
                    f"{self._most}; give a larger --input_length or fewer --shots."
                )
            keep = max(keep - (len(ids) - self._most), 0)
            text, ids = self._prompt(source, source.passage[: ends[keep - 1] if keep else 0], shots)
        return text, ids

    def answer(self, prompt: str, answer: str, *, ends: bool) -> NDArray[np.int64]:
        """The tokens of an answer to it.

        Args:
            ends: whether the end mark belongs to it.
        """
        if self._family == "t5":
            ids = self._encode(answer)
        else:
            # Together, for a tokenizer may treat the beginning of a text otherwise.
            ids = self._encode(f"{prompt} {answer}", adds_marks=True)[len(self._encode(prompt, adds_marks=True)) :]
        return np.array(ids + (self._marks if ends else []), np.int64)

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Written tokens as answers; a decoder, which would go on for ever, is heard up to the end of its line."""
        texts = [str(self.tokenizer.decode(list(row), skip_special_tokens=True)).strip() for row in rows]
        return texts if self._family == "t5" else [text.partition("\n")[0].rstrip() for text in texts]

    def shots(self, examples: Sequence[tuple[Source, str]]) -> str:
        """Questions with their answers, to stand before another one."""
        return "".join(f"{source.text}{CUE} {answer}\n\n" for source, answer in examples)

    def _prompt(self, source: Source, passage: str, shots: str) -> tuple[str, NDArray[np.int64]]:
        text = f"{shots}{source.before}{passage}{source.after}"
        if self._family == "t5" and not shots:
            return text, np.array(self._encode(text) + self._marks, np.int64)
        text += CUE
        marks = self._marks if self._family == "t5" else []
        return text, np.array(self._encode(text, adds_marks=not marks) + marks, np.int64)

    def _encode(self, text: str, *, adds_marks: bool = False) -> list[int]:
        """Tokens without an end mark; with a mark of the beginning, where the tokenizer puts one."""
        ids = self.tokenizer(text, add_special_tokens=adds_marks)["input_ids"]
        return ids[:-1] if adds_marks and ids[-1:] == self._marks else ids
