"""Pieces of text are whole characters, and together the whole text, in every kind of tokenizer."""

import pytest
from chat_models import small_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fivefold.models.text_stream import TextStream, answer_text
from fivefold.tokenizer.encode import CorpusEncoder


def byte_level():
    """GPT-2's kind, a token a byte."""
    vocab = {character: id_ for id_, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="module", params=[small_tokenizer, byte_level])
def tokenizer(request):
    return request.param()


def pieces_of(tokenizer, ids):
    stream = TextStream(tokenizer)
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("text", ["abc 你好 de", "龘龘 abc", "🙂🙃", "  a \n\n b ", "e\u0301 caf\u00e9", ""])
def test_pieces_are_the_text(tokenizer, text):
    (ids,) = (row.tolist() for row in CorpusEncoder(tokenizer)([text]))
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces) == answer_text(tokenizer, ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_words_come_as_soon_as_they_are_certain(tokenizer):
    (ids,) = (row.tolist() for row in CorpusEncoder(tokenizer)(["abc 你好"]))
    pieces = pieces_of(tokenizer, ids)
    assert pieces[0] != ""
    assert len([piece for piece in pieces if piece]) > 1


def test_bytes_that_are_no_character_are_shown_only_when_nothing_can_complete_them(tokenizer):
    (ids,) = (row.tolist() for row in CorpusEncoder(tokenizer)(["龘"]))
    (word,) = (row.tolist() for row in CorpusEncoder(tokenizer)(["abc"]))
    is_byte_fallback = str(tokenizer.convert_ids_to_tokens(ids[-1])).startswith("<0x")
    broken = [*word, *ids[:-1], *word]
    pieces = pieces_of(tokenizer, broken)
    assert "".join(pieces) == answer_text(tokenizer, broken)
    assert all("\ufffd" not in piece for piece in pieces[: len(broken) - len(word)])
    assert is_byte_fallback or len(ids) == 3
