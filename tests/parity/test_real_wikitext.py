"""A real dump, 106 English articles: no markup left, and the words are those that an independent parser reads."""

import re
from collections import Counter
from contextlib import suppress

import mwparserfromhell
import pytest

from fivefold.corpus.read import open_corpus
from fivefold.corpus.settings import CorpusSettings
from fivefold.corpus.wiki import Wikitext
from fivefold.corpus.wikitext import known_names

# An article on ASCII writes about the characters themselves, and one has a line of C.
MARKUP = {
    "templates": r"\{\{|\}\}",
    "links": r"\[\[|\]\]|\[https?:",
    "tables": r"\{\||^\|",
    "variants": r"-\{|\}-",
    "tags": r"</?[a-z]+(?: [^<>\n]*)?/?>",
    "comments": "<!--|-->",
    "bold and italics": "''",
    "headings": r"^=.*=$",
    "lists": r"^[*#:;]",
    "files and categories": r"(?i)\b(?:file|image|category):",
    "entities": r"&[a-z]+;|&#\d+;",
    "switches": r"__[A-Z]+__",
    "empty parentheses": r"\(\s*[,;]*\s*\)",
}


@pytest.fixture(scope="module")
def articles(real_dump) -> list[Wikitext]:
    corpus = open_corpus(CorpusSettings(data=[str(real_dump)]), keep_markup=True)
    pages = [record["text"] for record in corpus]
    assert corpus.state_dict()["left_out"] == {"redirects": 99, "pages that are no articles": 1}
    return pages


def test_no_markup_is_left(articles: list[Wikitext]) -> None:
    assert len(articles) == 106
    whole = "\n".join(page.plain_text() for page in articles)
    assert len(whole) > 2.5e6
    for what, pattern in MARKUP.items():
        assert not re.findall(pattern, whole, re.MULTILINE), what


def test_the_words_are_those_of_another_parser(articles: list[Wikitext]) -> None:
    ours, theirs = Counter[str](), Counter[str]()
    for page in articles[::5]:
        ours.update(words(page.plain_text()))
        theirs.update(words(reference(page)))
    # They differ in templates of running text, which the reference leaves out, and in pictures' captions that hold
    # brackets, which it takes for text.
    assert (ours - theirs).total() < 0.01 * ours.total()
    assert (theirs - ours).total() < 0.01 * theirs.total()


def reference(page: Wikitext) -> str:
    """mwparserfromhell's prose of a page, without what is no prose and without sections of sources."""
    code = mwparserfromhell.parse(str(page))
    no_prose = {"ref", "table", "gallery", "math", "timeline"}
    prefixes, appendices = known_names().files | known_names().categories, known_names().appendices
    remove = code.filter_tags(matches=lambda tag: str(tag.tag) in no_prose)
    remove += code.filter_wikilinks(matches=lambda link: str(link.title).partition(":")[0].lower() in prefixes)
    remove += code.get_sections(matches=lambda title: title.strip().lower() in appendices)
    for node in remove:
        with suppress(ValueError):  # it was inside another one
            code.remove(node)
    return code.strip_code()


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
