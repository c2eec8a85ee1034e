"""MediaWiki markup to the text that a reader would read out: one pass over the brackets, then lines and tags."""

import json
import re
from collections.abc import Mapping
from functools import cache
from html import unescape
from importlib import resources
from typing import NamedTuple

from fivefold.corpus.language_variants import chosen_variant

# Deeper nesting than this is no article but a broken or hostile page; MediaWiki stops at 100 as well.
DEEPEST_NESTING = 100
FILE_NAMESPACE, CATEGORY_NAMESPACE = 6, 14

# Content that is no prose. An unclosed tag reaches to the next one of its name, so that time stays linear.
_NO_PROSE = "ref|gallery|math|chem|ce|score|timeline|imagemap|syntaxhighlight|source|templatedata|templatestyles|graph"
_NO_PROSE += (
    "|mapframe|maplink|hiero|references|inputbox|categorytree|dynamicpagelist|rp|rt|style|section|indicator|pre"
)
WHOLE_TAG = re.compile(
    r"<!--.*?(?:-->|\Z)|<(nowiki)\s*/>"
    r"|<nowiki\s*>(?P<literal>[^<]*+(?:<(?!/?nowiki\b)[^<]*+)*+)</nowiki\s*>"
    rf"|<(?P<name>{_NO_PROSE})\b[^<>]*/>"
    rf"|<(?P<opened>{_NO_PROSE})\b[^<>]*>[^<]*+(?:<(?!/?(?P=opened)\b)[^<]*+)*+</(?P=opened)\s*>"
    r"|<ref\b[^<>]*>[^\n]*",
    re.IGNORECASE | re.DOTALL,
)
BRACKETS = re.compile(
    r"\{\{|\}\}|\[\[|\]\]|^[ \t:*#;]*\{\||^[ \t]*\|\}(?!\}(?!\}))|-\{(?!\{)|\}-|<table\b|</table\s*>",
    re.IGNORECASE | re.MULTILINE,
)
OPENING = {"{{": "template", "[[": "link", "{|": "table", "-{": "variant", "<table": "html"}
CLOSING = {"}}": "template", "]]": "link", "|}": "table", "}-": "variant", "</table": "html"}

NAMED_ARGUMENT = re.compile(r"\s*([^\s=<>{}\[\]][^=<>{}\[\]]{0,40}?)\s*=(.*)", re.DOTALL)
INTERLANGUAGE = re.compile(r"[a-z]{2,3}(?:-[a-z]+)*|simple")
INTERWIKI = re.compile(
    r"w|wikt|wiktionary|s|q|b|n|v|d|m|c|voy|commons|meta|species|wikisource|wikiquote", re.IGNORECASE
)
TAG = re.compile(r"</?[a-z][a-z0-9]*\b[^<>]*>", re.IGNORECASE)
LINE_BREAK = re.compile(r"<(?:br|hr|p|/p|/div|/li|/tr|/blockquote|/poem)\b[^<>]*>", re.IGNORECASE)
EXTERNAL_LINK = re.compile(r"\[(?:(?:https?:|ftps?:|news:|irc:)?//|mailto:)[^\s\[\]]*+(?:[^\S\n]++([^\[\]\n]*+))?\]")
SWITCH = re.compile(r"__(?:[A-Z]{3,}|[\u4e00-\u9fff]{2,})__")
MARGIN = re.compile(r"[*#:;\s]+|-{4,}")
ROW = re.compile(r"\||!.*(?:!!|\|)")
STYLE = re.compile(r"''+")
LEFTOVER = re.compile(r"\{\{+|\}\}+|\[\[|\]\]|\{\||-\{(?=zh)")
OPEN, CLOSE = r"[(\uff08\u3014]", r"[)\uff09\u3015]"
SEPARATORS = r"[\s,;:/\uff0c\u3001\uff1b\uff1a\u00b7]"
EMPTY_PARENTHESES = re.compile(rf"[ \t]*{OPEN}{SEPARATORS}*{CLOSE}")
AFTER_OPENING = re.compile(rf"({OPEN}){SEPARATORS}+")
BEFORE_CLOSING = re.compile(rf"(?<!{SEPARATORS}){SEPARATORS}++({CLOSE})")
DOUBLED_COMMA = re.compile(r"([,\uff0c\u3001])(?:\s*[,\uff0c\u3001])+")
BEFORE_STOP = re.compile(r"(?<=\S)[ \t]+(?=[.,](?:\s|$)|[\uff0c\u3002\u3001\uff1b])")
SPACES = re.compile(r"[^\S\n]+")
# XML cannot hold these characters, so they are free to mark a place.
PLACE_MARKS = re.compile("[\x01\x02]")
LITERAL = re.compile("\x01(\\d+)\x02")


class Names(NamedTuple):
    """What words mean in wikitext, in lower case."""

    files: frozenset[str]
    categories: frozenset[str]
    appendices: frozenset[str]
    """Headings of sections that list sources and links."""
    text_argument: Mapping[str, int]
    """Templates that mark up running text, and which of their arguments is the text."""


@cache
def known_names() -> Names:
    """The names in `wikitext.json`, in some fifty languages; a dump tells its own besides."""
    content = json.loads(resources.files("fivefold.corpus").joinpath("wikitext.json").read_text(encoding="utf-8"))
    files, categories, appendices = (frozenset(content[kind]) for kind in ("files", "categories", "appendices"))
    return Names(files, categories, appendices, content["text_argument"])


def plain_text(markup: str, namespaces: Mapping[str, int] | None = None) -> str:
    """The prose of a page, a paragraph, heading or list item a line.

    Left out: templates but for those that mark up running text, tables, files with their captions, categories, links
    to other languages, references, comments, formulas, galleries, code, sections of sources and links, and headings
    with nothing under them.

    Differs: MediaWiki expands templates; here they are left out. Unclosed brackets are read as their author's slip.

    Args:
        markup: a page's wikitext.
        namespaces: numbers of namespaces by their local names, in lower case, as a dump tells them.

    Cost: about a second for 6 MB, linear in the length even of broken markup.
    """
    literals: list[str] = []

    def set_aside(match: re.Match[str]) -> str:
        if not match["literal"]:
            return ""
        literals.append(unescape(match["literal"]))
        return f"\x01{len(literals) - 1}\x02"

    text = WHOLE_TAG.sub(set_aside, PLACE_MARKS.sub("", markup))
    text = resolve_brackets(text, namespaces or {})
    text = EXTERNAL_LINK.sub(lambda match: match[1] or "", SWITCH.sub("", text))
    text = TAG.sub("", LINE_BREAK.sub("\n", text))
    text = unescape(LEFTOVER.sub("", STYLE.sub("", text)))
    text = read_lines(text)
    text = BEFORE_CLOSING.sub(r"\1", AFTER_OPENING.sub(r"\1", EMPTY_PARENTHESES.sub("", text)))
    text = BEFORE_STOP.sub("", DOUBLED_COMMA.sub(r"\1", text))
    return LITERAL.sub(lambda match: literals[int(match[1])], text)


def resolve_brackets(text: str, namespaces: Mapping[str, int]) -> str:
    """Replace templates, links, tables and variants, inside out, by what is read of them."""
    # Each open bracket holds the text that has come since; the lowest is the page.
    stack: list[tuple[str, list[str]]] = [("page", [])]
    num_open = dict.fromkeys(OPENING.values(), 0)
    end = 0
    for match in BRACKETS.finditer(text):
        token = match[0].strip(" \t:*#;\n>").lower()
        stack[-1][1].append(text[end : match.start()])
        end = match.end()
        if kind := OPENING.get(token):
            if len(stack) < DEEPEST_NESTING:
                stack.append((kind, []))
                num_open[kind] += 1
            continue
        kind = CLOSING[token.rstrip()]
        if not num_open[kind]:
            if kind == "variant":
                stack[-1][1].append(token)
            continue
        while True:
            opened, parts = stack.pop()
            num_open[opened] -= 1
            content = "".join(parts)
            if opened == kind:
                stack[-1][1].append(RENDER[kind](content, namespaces))
                break
            stack[-1][1].append(unclosed(opened, content))
    stack[-1][1].append(text[end:])
    while len(stack) > 1:
        opened, parts = stack.pop()
        stack[-1][1].append(unclosed(opened, "".join(parts)))
    return "".join(stack[0][1])


def unclosed(kind: str, content: str) -> str:
    """What to keep behind a bracket that nobody closed: of a template and a table, what follows a blank line."""
    if kind in ("template", "table", "html"):
        return "\n\n" + content.partition("\n\n")[2]
    return content


def render_template(content: str, namespaces: Mapping[str, int]) -> str:
    """The text that a template marks up; nothing for all others."""
    name, _, rest = content.partition("|")
    name = name.strip().lower().replace("_", " ")
    arguments = known_names().text_argument
    place = arguments.get(name) or arguments.get(re.match("(?:[^-/]*[-/])?", name)[0])  # type: ignore[index]
    if not place or not rest:
        return ""
    values: dict[int, str] = {}
    for argument in rest.split("|"):
        named = NAMED_ARGUMENT.fullmatch(argument)
        if named is None:
            values[len(values) + 1] = argument
        elif named[1].isdecimal():
            values[int(named[1])] = named[2]
    if name == "convert":
        return " ".join(values.get(number, "").strip() for number in (1, 2))
    return values.get(place if place > 0 else len(values), "").strip()


def render_link(content: str, namespaces: Mapping[str, int]) -> str:
    """What is shown of an internal link; nothing for files, categories and other languages."""
    target, bar, shown = content.partition("|")
    if target.startswith(":"):
        prefix, colon, page = target[1:].partition(":")
        is_foreign = bool(colon) and (INTERLANGUAGE.fullmatch(prefix) or INTERWIKI.fullmatch(prefix))
        return shown if bar else page if is_foreign else target[1:]
    prefix, colon, page = target.partition(":")
    if colon:
        name = prefix.strip().lower().replace("_", " ")
        number = namespaces.get(name)
        names = known_names()
        if number in (FILE_NAMESPACE, CATEGORY_NAMESPACE) or name in names.files or name in names.categories:
            return ""
        if INTERWIKI.fullmatch(prefix):
            return shown or page
        if INTERLANGUAGE.fullmatch(prefix):
            return ""
    if not bar:
        return target
    # "[[Mercury (planet)|]]" is shown without what tells it from others.
    return shown or re.sub(r"\s*[(\uff08][^()\uff08\uff09]*[)\uff09]$", "", page or target)


RENDER = {
    "template": render_template,
    "link": render_link,
    "table": lambda content, namespaces: "\n",
    "html": lambda content, namespaces: "\n",
    "variant": lambda content, namespaces: chosen_variant(content),
}


def read_lines(text: str) -> str:
    """Drop list marks, rows that belong to no table, appendices, and headings with nothing under them."""
    lines: list[str] = []
    waiting: list[tuple[int, str]] = []  # headings that no text has followed yet
    skipped_level = 0
    appendices = known_names().appendices
    for raw in text.split("\n"):
        line = SPACES.sub(" ", raw).strip()
        if line.startswith("=") and line.endswith("="):
            level, title = len(line) - len(line.lstrip("=")), line.strip("= ")
            if skipped_level and level > skipped_level:
                continue
            skipped_level = level if title.lower() in appendices else 0
            waiting = [one for one in waiting if one[0] < level]
            if not skipped_level and title:
                waiting.append((level, title))
            continue
        if skipped_level or ROW.match(line):
            continue
        if margin := MARGIN.match(line):
            line = line[margin.end() :]
        if line:
            lines += [title for _, title in waiting]
            waiting.clear()
            lines.append(line)
    return "\n".join(lines)
