"""decode(encode(x)) is the NFKC form of x, for every line of the corpora and for any text there is."""

import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fivefold.corpus.catalogue import ENTRIES, PackageCorpus
from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.tokenizer.encode import CorpusEncoder
from fivefold.tokenizer.settings import TokenizerSettings
from fivefold.tokenizer.train import train_tokenizer

SPECIMENS = [
    "",
    " ",
    "   a  b   ",
    "\t\n\r\n\n x\x0b\x0c\x85\u2028\u2029y \t",
    "\u3000\u00a0\u2003\ufeff\u200b",
    "\x00\x01\x1b\x7f\x9f",
    "你好，世界！１２３①Ⅳ㈱ｶﾞ",
    "e\u0301 \u0301 \u1e9b\u0323 가\u11a8 \ufb01",
    "👩‍👩‍👧‍👦🇨🇳🏳️‍🌈👍🏽#️⃣",
    "\u2581",
    "\u2581a\u2581 \u2581\u2581\u0301",
    "\ufdd0\u2581\ufdd1\ufdd2\ufdd0\ufdd2\ufdd0\ufdd1",
    "\uffff\ufffe\U0010ffff\ue000",
    "<pad></s><unk><extra_id_0> <extra_id_19>[NLU][S2S]",
    "<0x0A><0xE4><0x BD>",
    "a.b,c;d 1,234.5 don't __x__ a\u2581b",
    "ﷺ" * 20,
    "क्षि ไทย العربية עברית",
]


def assert_exact(tokenizer: Any, documents: list[str], expected: list[str]) -> None:
    for document, ids, form in zip(documents, CorpusEncoder(tokenizer)(documents), expected, strict=True):
        assert tokenizer.decode(ids) == form, repr(document)


def test_specimens(tokenizer: Any) -> None:
    assert_exact(tokenizer, SPECIMENS, [unicodedata.normalize("NFKC", text) for text in SPECIMENS])


def test_the_tokenizer_itself_is_exact_too(tokenizer: Any) -> None:
    for text in SPECIMENS:
        ids = tokenizer(text, split_special_tokens=True, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_every_line_of_the_catalogue_corpora(algorithm: str, corpus_cache: Path) -> None:
    names = [entry.name for entry in ENTRIES if isinstance(entry, PackageCorpus)]
    fields = {
        "instructions": ("prompt", "response"),
        "preferences": ("chosen", "rejected"),
        "questions": ("passage", "question"),
    }
    found = []
    for name in names:
        parts = fields.get(name.partition("_")[2], ("text",))
        found += [record[part] for record in open_corpus(CorpusSettings(data=[name]), parts) for part in parts]
    found += [line for document in found for line in document.split("\n") if "\n" in document]
    documents = list(dict.fromkeys(found))
    # A small sample for the slower algorithm: exactness must not depend on what was learned.
    sample_characters = 1_000_000 if algorithm == "bpe" else 100_000
    settings = TokenizerSettings(
        output_dir="", vocab_size=4000, algorithm=algorithm, sample_characters=sample_characters
    )
    tokenizer = train_tokenizer(documents, settings).tokenizer
    assert_exact(tokenizer, documents, [unicodedata.normalize("NFKC", document) for document in documents])


def newer_characters(tokenizer: Any) -> set[str]:
    """Characters that Python's Unicode folds and that of the tokenizers library, which is older, does not know yet."""
    normalizer = tokenizer.backend_tokenizer.normalizer
    everything = (chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000)
    folded = (character for character in everything if not unicodedata.is_normalized("NFKC", character))
    return {c for c in folded if normalizer.normalize_str(c) != unicodedata.normalize("NFKC", c)}


def test_what_nfkc_does_not_fold_yet_is_kept(tokenizer: Any) -> None:
    newer = sorted(newer_characters(tokenizer))
    # 72 with Python 3.11: modifier letters, digits and squared words that came with Unicode 12 and later.
    assert len(newer) < 300
    assert_exact(tokenizer, newer, newer)


CHARACTERS = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(" \t\n\u2581\ufdd0\ufdd1\ufdd2，。天气<>_/s0123456789"),
    st.sampled_from(["</s>", "<extra_id_0>", "[NLU]", "<0x41>", "天气", " king"]),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CHARACTERS, max_size=40).map("".join))
def test_any_text(tokenizer: Any, text: str) -> None:
    # Against the library's own NFKC, which is that of an older Unicode than Python's.
    from tokenizers.normalizers import NFKC

    assert_exact(tokenizer, [text], [NFKC().normalize_str(text)])


OLD_CHARACTERS = st.characters(exclude_categories=["Cs", "Cn"]).filter(
    lambda character: unicodedata.ucd_3_2_0.category(character) != "Cn"
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(OLD_CHARACTERS, max_size=40))
def test_text_in_characters_that_both_know(tokenizer: Any, text: str) -> None:
    assert_exact(tokenizer, [text], [unicodedata.normalize("NFKC", text)])
