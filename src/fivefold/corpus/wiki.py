"""Pages out of a MediaWiki dump: streamed, articles only, resumable at any page."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, fromstring

from fivefold.corpus.bad_lines import BadLines
from fivefold.corpus.byte_stream import open_bytes
from fivefold.corpus.wikitext import plain_text
from fivefold.errors import DataError

# What a cut-off file loses before the cut, for pyarrow gives whole chunks only.
CHUNK_BYTES = 1 << 16
LONGEST_HEAD_BYTES = 1 << 20
# MediaWiki takes no revision above 2 MB; this much means a whole history.
LONGEST_PAGE_BYTES = 1 << 26
REDIRECT = re.compile("\\s*#(?:redirect|\u91cd\u5b9a\u5411)", re.IGNORECASE)
NAMESPACE = re.compile(r'<namespace key="(-?\d+)"[^>]*>([^<]+)</namespace>')


class Wikitext(str):
    """A page's markup, with the names that its dump gives to namespaces."""

    namespaces: Mapping[str, int]

    def plain_text(self) -> str:
        """What a reader would read out."""
        return plain_text(self, self.namespaces)


class Page(NamedTuple):
    """An article."""

    title: str
    markup: Wikitext
    number: int
    """Pages of the dump up to this one, whatever they are."""
    offset: int
    """Decompressed bytes up to behind this page."""


def read_articles(
    path: Path,
    number: int,
    offset: int,
    *,
    bad_lines: BadLines,
    left_out: Counter[str],
    watch: Callable[[Callable[[], int]], None] | None = None,
) -> Iterator[Page]:
    """The articles of a dump: pages of the main namespace that are no redirects.

    A dump that ends before its end mark is a broken line, so that `--max_bad_lines 1` takes what there is.

    Each page is cut out by its tags and parsed by itself: a place in the dump is then a number of bytes, and a broken
    page costs that page alone.

    Args:
        path: the dump, compressed or not.
        number: pages read before.
        offset: where they ended.
        bad_lines: told of pages that are not XML, and of a dump that was cut off.
        left_out: counts pages that are no articles, by what they are.
        watch: as for `open_bytes`.

    Raises:
        DataError: not a MediaWiki dump, or more is broken than allowed.
    """
    namespaces = local_namespaces(path)
    title = ""
    for block, end in page_blocks(path, offset, watch):
        if block is None:
            behind = f"behind page {number}" + (f" ({title!r})" if title else "")
            bad_lines.report(f"{path}: {behind}", "the dump is cut off there, or damaged")
            return
        number += 1
        try:
            page = fromstring(block)
        except ParseError as error:
            bad_lines.report(f"{path}: page {number}", f"not XML ({error})")
            continue
        title = page.findtext("title", "")
        markup = Wikitext(page.findtext("revision[last()]/text") or "")
        if reason := why_no_article(page, title, markup, namespaces):
            left_out[reason] += 1
            continue
        markup.namespaces = namespaces
        yield Page(title, markup, number, end)


def why_no_article(page: Element, title: str, markup: str, namespaces: Mapping[str, int]) -> str | None:
    """What a page is, if it is no article."""
    # Dumps from before 2012 do not say the namespace.
    namespace = page.findtext("ns") or str(namespaces.get(title.partition(":")[0].lower(), 0))
    if namespace != "0" or page.findtext("revision[last()]/model", "wikitext") != "wikitext":
        return "pages that are no articles"
    if page.find("redirect") is not None or REDIRECT.match(markup):
        return "redirects"
    return None


def local_namespaces(path: Path) -> dict[str, int]:
    """The numbers of namespaces by their local names, in lower case, from the head of a dump."""
    head = b""
    with open_bytes(path) as stream:
        while b"<page>" not in head and len(head) < LONGEST_HEAD_BYTES and (more := read_some(stream)):
            head += more
    if b"<mediawiki" not in head:
        raise DataError(f"{path} is no MediaWiki dump: expected <mediawiki ...> at its beginning.")
    return {name.lower(): int(key) for key, name in NAMESPACE.findall(head.decode("utf-8", "replace"))}


def page_blocks(
    path: Path, offset: int, watch: Callable[[Callable[[], int]], None] | None = None
) -> Iterator[tuple[bytes | None, int]]:
    """Each page's XML and the place behind it; None in the end if the dump has no end mark.

    In XML a "<" inside text is written "&lt;", so the tags can be looked for as bytes.
    """
    with open_bytes(path, offset, watch=watch) as stream:
        buffer = b""
        while True:
            end = buffer.find(b"</page>")
            if end < 0:
                if len(buffer) > LONGEST_PAGE_BYTES:
                    raise DataError(
                        f"{path} has a page of more than {LONGEST_PAGE_BYTES:,} bytes: expected a dump with one "
                        "revision a page, such as pages-articles."
                    )
                if not (more := read_some(stream)):
                    if b"</mediawiki>" not in buffer:
                        yield None, offset
                    return
                buffer += more
                continue
            end += len(b"</page>")
            offset += end
            start = buffer.find(b"<page>", 0, end)
            yield buffer[max(start, 0) : end], offset
            buffer = buffer[end:]


def read_some(stream: BufferedReader) -> bytes:
    """The next bytes; none at the end, and where a compressed file is damaged or cut off."""
    try:
        return stream.read1(CHUNK_BYTES)
    except OSError:
        return b""
