"""Tokens to text as they come, without characters that a later token would still change."""

import re

from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_INCOMPLETE = "\ufffd"


def answer_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """The text of an answer's tokens: end marks and blanks around it left out."""
    return str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)).strip()


class TextStream:
    """The text of a growing list of tokens in pieces, which together are `answer_text` of all of them.

    A character made of several tokens is held back until it is whole, and so are blanks that might be the last ones.
    Where a tokenizer spells in bytes (`<0xE4>`), a run of them is held to its end: one wrong byte in it, and none of
    them is a character.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._sent = ""

    def push(self, token: int) -> str:
        """The text that is certain now and was not before; often none."""
        self._ids.append(token)
        if _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(token))):
            return ""
        text = answer_text(self._tokenizer, self._ids)
        while text.endswith(_INCOMPLETE):
            text = text.rstrip(_INCOMPLETE).rstrip()
        return self._send(text)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        return self._send(answer_text(self._tokenizer, self._ids))

    def _send(self, text: str) -> str:
        if not text.startswith(self._sent):
            return ""
        piece, self._sent = text[len(self._sent) :], text
        return piece
