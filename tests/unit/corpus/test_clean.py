"""Filters of single documents: each on texts worked by hand, off unless asked for, and the same in any process."""

import pickle
import unicodedata

import pytest
from opencc import OpenCC

from fivefold.corpus.clean import Cleaner, CleanText, check_languages, clean_text, language, to_simplified
from fivefold.corpus.quality import why_low_quality
from fivefold.corpus.settings import CleaningSettings
from fivefold.corpus.wiki import Wikitext
from fivefold.errors import ConfigError

PROSE = "昨天下午我们沿着河边走了很久，看见许多人在放风筝，还有几个孩子在草地上追一只小狗。"
ENGLISH = "Yesterday we walked along the river for a long time and saw many people flying kites in the wind."


@pytest.mark.parametrize("text", ["", " \n", "ＡＢ①，臺灣", "\ud800", "\x00", "a" * 10_000])
def test_nothing_is_done_unasked(text: str) -> None:
    assert clean_text(text, CleaningSettings()).text == text
    assert clean_text(text, CleaningSettings()).reason == (None if text.strip() else "blank")


def test_normal_forms_and_scripts() -> None:
    text = "「裡面」的ＡＢ①ｶﾞ，e\u0301"
    assert clean_text(text, CleaningSettings(normalise="nfc")).text == unicodedata.normalize("NFC", text)
    assert clean_text(text, CleaningSettings(normalise="nfkc")).text == "「裡面」的AB1ガ,é"
    assert clean_text(text, CleaningSettings(simplified=True)).text == "「里面」的ＡＢ①ｶﾞ，e\u0301"
    both = CleaningSettings(normalise="nfkc", simplified=True)
    assert clean_text("\uf9d1书裡", both).text == "六书里", "a compatibility form is resolved before it is converted"


def test_simplified_stays_simplified() -> None:
    text = "這座橋在夜裡照亮了門前的石頭，乾隆皇帝的後代在臺灣發展。"
    assert to_simplified(text) == "这座桥在夜里照亮了门前的石头，乾隆皇帝的后代在台湾发展。"
    assert OpenCC("t2s").convert(to_simplified(text)) == to_simplified(text)


def test_boilerplate_lines_go_and_paragraphs_stay() -> None:
    paragraph = "这段话很长，讲的是" + "版权所有这四个字的来历，" * 20
    text = f"{PROSE}\n版权所有 2020\nPlease enable JavaScript.\n{paragraph}\n上一篇：旧文"
    assert clean_text(text, CleaningSettings(drop_boilerplate=True)).text == f"{PROSE}\n{paragraph}"
    assert clean_text("ICP备 123", CleaningSettings(drop_boilerplate=True)) == CleanText("", "blank")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        (ENGLISH, None),
        ("读了三遍也没有读懂他想说什么...", None),
        ("1234 5678, 90: 12 + 34 = 46。", "too few letters"),
        ("\n".join(f"- {PROSE}{n}" for n in range(5)), "bullets only"),
        (f"{PROSE}\n甲乙丙丁...\n戊己庚辛……", "lines that trail off"),
        ("\n".join([PROSE, ENGLISH, PROSE]), "repeated lines"),
        ("哈哈哈哈哈哈哈哈哈哈哈哈", "repeated characters"),
        ("好好", None),
    ],
)
def test_quality_worked_by_hand(text: str, reason: str | None) -> None:
    assert why_low_quality(text) == reason
    assert clean_text(text, CleaningSettings(quality=True)).reason == reason


def test_lengths() -> None:
    settings = CleaningSettings(min_characters=3, max_characters=5)
    reasons = [clean_text("字" * length, settings).reason for length in range(2, 7)]
    assert reasons == ["too short", None, None, None, "too long"]


def test_languages() -> None:
    assert (language(PROSE), language(ENGLISH)) == ("zh", "en")
    chinese = CleaningSettings(language=["zh"])
    assert clean_text(PROSE, chinese).reason is None
    assert clean_text("好用，价格便宜。", chinese).reason is None, "taken for Wu, which a short text may be"
    assert clean_text(ENGLISH, chinese).reason == "in another language"
    assert clean_text(ENGLISH, CleaningSettings(language=["zh", "en"])).reason is None
    check_languages(["zh", "en", "yue"])
    with pytest.raises(ConfigError, match=r"'chinese' is none that py3langid knows: .* zh "):
        check_languages(["zh", "chinese"])


def test_a_cleaner_travels_and_works_on_markup() -> None:
    page = Wikitext("'''臺北'''{{x}}\n[[Dosiero:a.png]]")
    page.namespaces = {"dosiero": 6}
    cleaner = pickle.loads(pickle.dumps(Cleaner(CleaningSettings(simplified=True, deduplicate="near"))))
    found = cleaner(pickle.loads(pickle.dumps([page, "", "台北"])))
    assert [one.text for one in found] == ["台北", "", "台北"]
    assert [one.reason for one in found] == [None, "blank", None]
    assert found[0].digest == found[2].digest
    assert found[0].signature.minima == found[2].signature.minima


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"min_characters": 0}, "min_characters is 0"),
        ({"min_characters": 9, "max_characters": 5}, "no document can be both"),
        ({"near_threshold": 0.1, "deduplicate": "near"}, "from 0.3 to 1"),
        ({"near_threshold": 0.9, "deduplicate": "exact"}, "--deduplicate exact has no near_threshold"),
        ({"near_threshold": 0.9}, "--deduplicate none has no near_threshold"),
    ],
)
def test_settings_that_cannot_be(settings: dict, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        CleaningSettings(**settings)
