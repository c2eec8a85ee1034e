"""Wikitext to prose: every construct with the text that a reader would read out, and no markup left of any."""

import time

import pytest
from wiki_dump import CLOSED, CONSTRUCTS

from fivefold.corpus.language_variants import chosen_variant
from fivefold.corpus.wikitext import plain_text


@pytest.mark.parametrize(("markup", "text"), CONSTRUCTS.values(), ids=CONSTRUCTS)
def test_every_construct(markup: str, text: str) -> None:
    assert plain_text(markup) == text


def test_constructs_do_not_disturb_each_other() -> None:
    page = "\n== 节 ==\n开始。\n".join(markup for markup, _ in CLOSED)
    assert plain_text(page) == "\n节\n开始。\n".join(text for _, text in CLOSED)


def test_a_dump_tells_its_own_names() -> None:
    markup = "[[Dosiero:a.jpg|bildo]][[Kategoriaro:Rivero|x]]La rivero."
    assert plain_text(markup, {"dosiero": 6, "kategoriaro": 14}) == "La rivero."


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("zh-hant:乙", "乙"),
        ("zh-hans:a&nbsp;b;zh-hant:c", "a&nbsp;b"),
        ("zh-hans:http://a.b;zh-hant:c", "http://a.b"),
        ("鼠標=>zh-cn:鼠标;滑鼠=>zh-tw:滑鼠", "鼠标"),
        ("sr-ec:рука;sr-el:ruka", "рука"),
        ("文：字；再", "文：字；再"),
        ("a|b", "b"),
        ("+|zh-hans:a;zh-hant:b", "a"),
        ("", ""),
    ],
)
def test_variants_worked_by_hand(content: str, text: str) -> None:
    assert chosen_variant(content) == text


HOSTILE = """
{{ }} [[ ]] [[a| [[a: [[a]] {{a}} {{lang| {{lang|a= {|NEWLINE NEWLINE|} -{ -{zh-cn: -{a; -{a}- <ref> <ref><math> <!--
<table> <a SPACE ( (,) （， ，） , SPACE, . '' & = =a SPACE= NEWLINE= NEWLINE==SPACEa [http: [http://aSPACE |a NEWLINE
<nowiki>
"""


@pytest.mark.parametrize("unit", HOSTILE.split())
def test_hostile_pages_take_linear_time(unit: str) -> None:
    """A page of one thing, over and over, whose end nobody wrote."""
    seconds = []
    for length in (20_000, 200_000):
        unit = unit.replace("SPACE", " ").replace("NEWLINE", "\n")
        page = "=a" + unit * (length // len(unit)) + "b"
        start = time.process_time()
        plain_text(page)
        seconds.append(time.process_time() - start)
    # Ten times the length; quadratic time would be a hundred times the seconds.
    assert seconds[1] < 0.1 + 30 * seconds[0]
