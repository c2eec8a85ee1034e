"""MediaWiki dumps for tests: sentences of our own around every construct, and what is to be read of them."""

import bz2
from collections.abc import Iterable, Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple
from xml.sax.saxutils import escape

CONSTRUCTS = {
    "comment": ("春天<!-- 这里\n要改 -->来了。", "春天来了。"),
    "unclosed comment": ("春天来了。<!-- 这里要改", "春天来了。"),
    "bold": ("'''长江'''是''亚洲''最'''''长'''''的河。", "长江是亚洲最长的河。"),
    "link": ("[[武汉]]在[[长江|大江]]边，[[汉口 (武汉)|]]也是。", "武汉在大江边，汉口也是。"),
    "link with trail": ("Two [[dog]]s ran to [[Ohio (river)|Ohio]].", "Two dogs ran to Ohio."),
    "link inside quotes": ("[[A]][[B|b]]''[[C]]''", "AbC"),
    "title with a colon": ("[[Dune: Part Two]] is long.", "Dune: Part Two is long."),
    "template": ("雨{{来源请求|date=五月}}下了一天。", "雨下了一天。"),
    "template over lines": ("{{Infobox\n| 名 = {{nowrap|[[某]]}}\n| 图 = {{{1|}}}\n}}\n正文在此。", "正文在此。"),
    "template with an empty end": ("{{Infobox\n|名=某\n|}}\n正文。", "正文。"),
    "templates of text": (
        "{{lang|fr|Bonjour}}，{{lang-en|Good day}}，{{link-en|量子|quantum}}",
        "Bonjour，Good day，量子",
    ),
    "numbered argument": ("{{lang|en|1=x|2=a = b}}", "a = b"),
    "convert": ("It is {{convert|10|km|mi}} long.", "It is 10 km long."),
    "table": ('前文。\n{| class="x"\n|-\n! 甲 !! 乙\n|-\n| [[一]] || {{二}}\n|}\n后文。', "前文。\n后文。"),
    "table in a table": ("前。\n{|\n|\n:{|\n|内\n|}\n|外\n|}\n后。", "前。\n后。"),
    "html table": ("前。<table border=1><tr><td>格<table><tr><td>里</table></td></tr></table>后。", "前。\n后。"),
    "rows of a table from a template": (
        "{{表头}}\n|-\n| 甲 || 乙\n! 一 !! 二\n{{表尾}}\n!Kung 人住在南部。",
        "!Kung 人住在南部。",
    ),
    "category": ("正文。[[Category:河]][[分类:中国的河|长]][[分類:水]][[Kategorie:Fluss]]", "正文。"),
    "category shown": ("见[[:分类:河|河的分类]]和[[:Category:Lake]]。", "见河的分类和Category:Lake。"),
    "file": ("[[File:a.jpg|thumb|right|''某''的[[桥|老桥]]，{{nowrap|见 [[渡口]]}}]]正文。", "正文。"),
    "files by other names": (
        "[[文件:a.png]][[檔案:b.png|缩略图|图]][[图像:c.png]][[Image:d.svg|20px]]正文。",
        "正文。",
    ),
    "gallery": ('前。<gallery mode="packed">\nFile:a.jpg|甲\nb.jpg|[[乙]]\n</gallery>后。', "前。后。"),
    "reference": (
        '雪<ref name=a/>很<ref>{{cite|title=x}} [http://a.b c]</ref>大<ref group=注 name="b" />。',
        "雪很大。",
    ),
    "unclosed reference": ("雪<ref>某书，第三页\n第二段。", "雪\n第二段。"),
    "formula": (r"圆的周长是<math>2\pi r</math>。", "圆的周长是。"),
    "nowiki": ("写<nowiki>[[链接]]和''斜体''</nowiki>即可<nowiki/>。", "写[[链接]]和''斜体''即可。"),
    "code": ('<syntaxhighlight lang="c">if (a[0]) {{ b; }}</syntaxhighlight>这是代码。', "这是代码。"),
    "headings": ("== 历史 ==\n很久以前。\n=== ''近代'' ===\n不久以前。", "历史\n很久以前。\n近代\n不久以前。"),
    "empty sections": ("== 空 ==\n=== 也空 ===\n{{空}}\n== 满 ==\n=== 内 ===\n文。", "满\n内\n文。"),
    "appendices": (
        "文。\n== 参考文献 ==\n* 某书\n=== 网页 ===\n* 某页\n== 外部連結 ==\n* [http://a.b]\n== 影响 ==\n大。",
        "文。\n影响\n大。",
    ),
    "lists": ("* 一\n** 二\n# 三\n: 四\n; 五\n*: 六\n----\n", "一\n二\n三\n四\n五\n六"),
    "external links": ("[https://a.b/c?d=e 某站]和[http://a.b]、[//a.b 它站]。", "某站和、它站。"),
    "languages": ("正文。\n[[en:River]]\n[[zh-min-nan:Hô]]\n[[simple:River]]", "正文。"),
    "language shown": ("见[[:en:River|英文]]及[[:fr:Fleuve]]。", "见英文及Fleuve。"),
    "sister project": ("[[wikt:河|河字]]与[[s:水经注]]。", "河字与水经注。"),
    "switches": ("__NOTOC__\n__目录__\n正文 __init__ 不变。", "正文 __init__ 不变。"),
    "tags": ('<div style="a">H<sub>2</sub>O<br />是<span lang="zh">水</span></div>', "H2O\n是水"),
    "poem": ("<poem>\n一句\n二句\n</poem>", "一句\n二句"),
    "ruby": ("<ruby>汉<rp>(</rp><rt>hàn</rt><rp>)</rp></ruby>字", "汉字"),
    "entities": ("A&nbsp;B &lt;b&gt; &amp;amp; &#27700; &mdash; 1 < 2", "A B <b> &amp; 水 — 1 < 2"),
    "emptied parentheses": ("长江（{{lang|x}}，{{y}}）与黄河（{{lang-en}}，古称河）。", "长江与黄河（古称河）。"),
    "space before a stop": ("It rained {{citation needed}}. It 雨{{x}} ，停。", "It rained. It 雨，停。"),
    "variants": ("用-{zh-hans:鼠标; zh-hant:滑鼠}-点-{zh-tw:軟體;zh-cn:软件;zh-hk:軟件;}-。", "用鼠标点软件。"),
    "variant nested": ("-{zh-hans:[[鼠标|标]]{{x}};zh-hant:[[滑鼠]]}-", "标"),
    "variant in a link": ("[[某-{zh-hans:国;zh-hant:國}-|-{某国}-]]", "某国"),
    "variants in silence": ("-{T|zh-hans:甲;zh-hant:乙}--{H|zh-cn:丙;zh-tw:丁}-文。", "文。"),
    "variants with a flag": ("-{A|zh-hans:甲;zh-hant:乙}-、-{R|原樣}-、-{D|zh-tw:丁;zh-cn:丙}-", "甲、原樣、丙"),
    "variants for some": ("-{zh-hans;zh-cn|简}--{zh-tw;zh-hk|繁}-", "简"),
    "dash before a template": ("1990-{{CURRENTYEAR}}年", "1990-年"),
    "unclosed variant": ("集合{a}-b 与 x-{y", "集合{a}-b 与 xy"),
    "unclosed template": ("{{Infobox\n| 名 = [[某]]\n\n正文在此。", "正文在此。"),
    "unclosed table": ("前。\n{|\n| 甲\n\n后。", "前。\n后。"),
    "unclosed link": ("见[[某处，再走。\n第二段。", "见某处，再走。\n第二段。"),
    "strays": ("甲}}乙]]丙|}丁", "甲乙丙|}丁"),
    "template across a link": ("[[甲|{{乙]]丙}}丁", "丙丁"),
}

# Those after which a page may go on.
CLOSED = [
    pair for name, pair in CONSTRUCTS.items() if not name.startswith(("unclosed", "appendices", "empty sections"))
]

HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11" xml:lang="zh">
  <siteinfo>
    <sitename>Test</sitename>
    <namespaces>
      <namespace key="0" case="first-letter" />
      <namespace key="6" case="first-letter">Dosiero</namespace>
      <namespace key="10" case="first-letter">Template</namespace>
      <namespace key="14" case="first-letter">Kategoriaro</namespace>
    </namespaces>
  </siteinfo>
"""
TAIL = "</mediawiki>\n"


class Page(NamedTuple):
    """A page, and what is to be read of it; None where it is no article."""

    title: str
    markup: str
    text: str | None = None
    namespace: int = 0
    redirect: bool = False


def sentence(random: Random) -> str:
    """A sentence that makes sense to nobody, in traditional characters too."""
    subjects = [
        "小河",
        "老船夫",
        "這座橋",
        "村裡的學校",
        "山後的雲",
        "春天的風",
        "那本書",
        "一位畫家",
        "城外的麥田",
        "夜裡的燈",
    ]
    verbs = ["經過", "看見", "記得", "離開", "等待", "畫下", "說起", "靠近", "照亮", "忘記"]
    objects = [
        "南邊的村莊",
        "從前的日子",
        "一場大雨",
        "遠方的朋友",
        "門前的石頭",
        "港口的帆船",
        "第一場雪",
        "祖父的花園",
    ]
    return f"{random.choice(subjects)}在{random.randint(2, 9999)}天後{random.choice(verbs)}了{random.choice(objects)}。"


def articles(count: int, seed: int = 0) -> Iterator[Page]:
    """Articles of sentences and constructs; `len(CLOSED)` of them or more hold each construct."""
    random = Random(seed)
    for number in range(count):
        markup, text = [], []
        for turn in range(random.randint(2, 6)):
            opening = "".join(sentence(random) for _ in range(3))
            construct = CLOSED[number % len(CLOSED)] if turn == 0 else random.choice(CLOSED)
            markup += [f"== 第{turn}節 ==", opening, construct[0]]
            text += [f"第{turn}節", opening, construct[1]]
        markup.append("[[Dosiero:b.png|kun [[ligilo]]]]\n== 參考文獻 ==\n* 某書\n[[Kategoriaro:X]]")
        yield Page(f"條目 {number}", "\n".join(markup), "\n".join(text))


def with_others(pages: Iterable[Page]) -> Iterator[Page]:
    """Pages, and behind every fourth a redirect, behind every fifth a template's page."""
    for number, page in enumerate(pages):
        yield page
        if number % 4 == 3:
            yield Page(f"別名 {number}", f"#重定向 [[{page.title}]]", redirect=True)
        if number % 5 == 4:
            yield Page(f"Template:T{number}", "{{{1}}} is '''shown'''", namespace=10)


def dump_text(pages: Iterable[Page]) -> str:
    """The XML of a dump."""
    return HEAD + "".join(page_text(page) for page in pages) + TAIL


def page_text(page: Page) -> str:
    """The XML of a page."""
    redirect = '    <redirect title="X" />\n' if page.redirect else ""
    return (
        f"  <page>\n    <title>{escape(page.title)}</title>\n    <ns>{page.namespace}</ns>\n    <id>1</id>\n{redirect}"
        "    <revision>\n      <id>1</id>\n      <model>wikitext</model>\n      <format>text/x-wiki</format>\n"
        f'      <text bytes="1" xml:space="preserve">{escape(page.markup)}</text>\n    </revision>\n  </page>\n'
    )


def write_dump(path: Path, pages: Iterable[Page]) -> Path:
    """Write a dump, packed as its name says."""
    content = dump_text(pages).encode()
    path.write_bytes(bz2.compress(content) if path.suffix == ".bz2" else content)
    return path
