"""Cleaning: each step does what its name says, and nothing that is right is changed."""

from __future__ import annotations

import pickle
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.cleaning import PRESETS, STEPS, Cleaner, expand, identify
from fourstage.data.cleaning.boilerplate import kind_of
from fourstage.errors import InputError

ENGLISH = (
    "The old miller had three sons, and when he died he left them his mill, his donkey and a cat. "
    "The eldest took the mill, because it was what he wanted most. The second took the donkey. "
    "The youngest was left with the cat, and he was not happy about that at all. "
    "“I shall have to starve,” he said to the cat, which was listening behind the stove. "
    "But the cat asked for a pair of boots and a bag, and promised that all would end well.\n"
    "So the boots were made. The cat went into the forest, caught a rabbit, and brought it to the "
    "king with the greetings of a lord whom nobody in the land had ever heard of before."
)
CHINESE = (
    "从前有一个磨坊主，他有三个儿子。他去世以后，大儿子得到了磨坊，二儿子得到了驴，小儿子只得到一只猫。"
    "小儿子很难过，他说：“我的哥哥们可以一起谋生，而我吃了这只猫以后就要饿死了。”猫听见了他的话，"
    "就对他说：“不要难过，给我一双靴子和一个口袋，你会看到你的运气没有那么坏。”\n"
    "于是他给猫做了一双靴子。猫走进树林，捉到了一只兔子，把它献给了国王。国王非常高兴，"
    "赏给猫很多金子，还问它的主人是谁。"
)
POEM = "床前明月光，疑是地上霜。\n舉頭望明月，低頭思故鄉。"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_good_prose_comes_out_as_it_went_in(preset, text):
    cleaned = Cleaner(preset)(text)
    assert (cleaned.text, cleaned.reason, dict(cleaned.edits)) == (text, None, {})


def test_a_poem_stays_by_default():
    assert Cleaner("light")(POEM).text == POEM


@given(st.text(max_size=200))
def test_light_cleaning_is_done_after_once(text):
    cleaner = Cleaner("light")
    once = cleaner(text).text
    if once is not None:
        assert cleaner(once).text == once


@given(st.text(max_size=300))
def test_no_text_makes_cleaning_fail(text):
    cleaned = Cleaner([step for step in STEPS if step != "quality"])(text)
    assert (cleaned.text is None) == (cleaned.reason is not None)


@given(st.text(alphabet=st.sampled_from("a click here to for home|·>X.\n{[1"), max_size=2000))
def test_no_text_makes_cleaning_hang(text):
    Cleaner("web")(text * 20)


def test_a_cleaner_travels_to_a_worker():
    cleaner = pickle.loads(pickle.dumps(Cleaner("web", languages=["en"])))
    assert cleaner(ENGLISH).text == ENGLISH


def test_steps_are_taken_in_their_order_however_they_are_written():
    assert expand(["pii", "light", "control"]) == ("unicode", "control", "pii")
    assert expand("raw") == ()


def test_an_unknown_step_is_named_with_the_nearest_one():
    with pytest.raises(InputError, match="did you mean 'gopher'"):
        expand(["gofer"])


def test_a_text_with_nothing_in_it_is_dropped_as_empty():
    assert Cleaner("light")("\u200b\ufeff \n").reason == "empty"


# Characters


@pytest.mark.parametrize(
    ("broken", "right"),
    [
        ("cafÃ© au lait", "café au lait"),
        ("Itâ€™s fine, he saidâ€¦", "It’s fine, he said…"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚, ÐºÐ°Ðº Ð´ÐµÐ»Ð°?", "Привет, как дела?"),
        ("e\u0301cole", "école"),
    ],
)
def test_mojibake_and_pieces_of_characters_are_repaired(broken, right):
    cleaned = Cleaner(["unicode"])(broken)
    assert cleaned.text == right
    assert sum(cleaned.edits.values()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "“Curly” ‘quotes’ — and… an ﬁ ligature, ＦＵＬＬ width, &amp; an entity",
        "Привет ё» — да… Ёлка",
        "Ça va? Déjà vu à Łódź — où ça…",
        "中文「引号」，和“引号”。",
    ],
)
def test_what_is_no_mojibake_stays(text):
    assert Cleaner(["unicode"])(text).text == text


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=50))
def test_ascii_is_never_repaired(text):
    assert Cleaner(["unicode"])(text or "a").text in (text or "a", None)


@pytest.mark.parametrize(
    ("given_", "left"),
    [
        ("a\x00b\x07c\x7fd", "abcd"),
        (
            "soft\u00adhyphen, zero\u200bwidth, \ufeffBOM, \u202ebidi\u202c",
            "softhyphen, zerowidth, BOM, bidi",
        ),
        ("one\r\ntwo\rthree\u2028four\tfive\n", "one\ntwo\nthree\nfour\tfive\n"),
        ("half \ud83d and pair \ud83d\ude00", "half  and pair 😀"),
        ("non\ufffe\U0001ffffcharacter\ufdd0s", "noncharacters"),
        ("hidden\U000e0068\U000e0069 tags", "hidden tags"),
    ],
)
def test_what_is_not_seen_is_removed(given_, left):
    assert Cleaner(["control"])(given_).text == left


@pytest.mark.parametrize(
    "text",
    [
        "👨\u200d👩\u200d👧 and ❤️\u200d🔥",
        "می\u200cخواهم",
        "क्\u200dष",
        "🏴\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    ],
)
def test_joiners_and_tags_stay_where_they_are_needed(text):
    assert Cleaner(["control"])(text).text == text


@given(st.text(max_size=200))
def test_no_control_character_is_left(text):
    left = Cleaner(["control"])(text).text or ""
    assert {c for c in left if unicodedata.category(c) in ("Cc", "Cs")} <= {"\n", "\t"}


def test_text_that_could_not_be_decoded_is_dropped_with_the_share():
    cleaned = Cleaner("light")("caf\ufffd au l\ufffdit, d\ufffdj\ufffd vu")
    assert (cleaned.text, cleaned.reason) == (None, "control.replacement")
    assert "> 0.002" in cleaned.detail


# Lines of the page


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("We use cookies to improve your experience.", "cookies"),
        ("Please enable JavaScript to view this page.", "javascript"),
        ("© 2018 Example Ltd. All rights reserved.", "copyright"),
        ("Share this: Facebook Twitter Reddit", "share"),
        ("Home | About us | Contact | Privacy policy", "menu"),
        ("Log in", "menu"),
        ("Home > Books > Fairy tales", "menu"),
        ("版权所有 © 2019 某某公司", "copyright"),
        ("京ICP备12345678号-1 京公网安备11010502030000号", "filing"),
        ("上一篇：春天的故事 下一篇：没有了", "pages"),
        ("点击查看更多精彩内容", "click"),
        ("登录 | 注册", "menu"),
        ("您当前的位置：首页 > 新闻", "menu"),
        ("转载请注明出处：某某网", "reprint"),
        ("责任编辑：张三", "reprint"),
        ("扫一扫关注我们的公众号", "share"),
    ],
)
def test_lines_of_the_page_are_told_by_kind(line, kind):
    assert kind_of(line) == kind


@pytest.mark.parametrize(
    "line",
    [
        "She baked cookies for the whole street.",
        "JavaScript is the language of the web, and it was written in ten days.",
        "He went home.",
        "Help, help, help!",
        "The copyright of the song was sold in 1932 to a company in Ohio.",
        "| 1 | 2 | 3 | 4 |",
        "首先点击鼠标右键，然后选择属性，系统会弹出一个对话框，在其中输入你的名字即可完成设置操作。",
        "他登录了系统，然后注册了一个新的账号。",
        "下一篇文章将介绍如何训练模型，请继续关注本系列的后续内容与更新。",
    ],
)
def test_lines_of_text_are_no_boilerplate(line):
    assert kind_of(line) == ""


def test_boilerplate_is_cut_out_and_counted():
    cleaned = Cleaner(["boilerplate"])(
        f"Home | Shop | News | Help\n{ENGLISH}\nAll rights reserved."
    )
    assert cleaned.text == ENGLISH
    assert dict(cleaned.edits) == {"boilerplate.menu": 1, "boilerplate.copyright": 1}


# Languages


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (CHINESE, "zh"),
        (POEM * 2, "zh"),
        ("これは日本語の文章です。とても面白いと思います。", "ja"),
        ("이것은 한국어 문장입니다. 매우 재미있다고 생각합니다.", "ko"),
        ("Der Müller hatte drei Söhne, seine Mühle, einen Esel und einen Kater.", "de"),
        ("Un meunier ne laissa pour tous biens à trois enfants que son moulin et son âne.", "fr"),
        ("У мельника было три сына, и оставил он им мельницу, осла да кота.", "ru"),
        ("OK", "und"),
        ("12345 67890", "und"),
    ],
)
def test_languages_are_told_apart(text, code):
    assert identify(text)[0] == code


def test_only_the_languages_asked_for_are_kept_and_short_texts_with_them():
    cleaner = Cleaner("light", languages=["zh"])
    assert cleaner(CHINESE).language == "zh"
    assert cleaner("OK.").text == "OK."
    dropped = cleaner(ENGLISH)
    assert (dropped.text, dropped.reason) == (None, "language.other")
    assert dropped.detail.startswith("en ")


def test_an_unknown_language_is_refused():
    with pytest.raises(InputError, match=r"data\.languages=english: not among"):
        Cleaner("light", languages=["english"])


# Code and tables


PROGRAM = (
    "import sys\n\n\ndef main(path):\n    with open(path) as file:\n"
    "        return file.read()\n\n\nmain(sys.argv[1])\n"
)
TABLE = (
    "| name | age |  town |\n|---|---|---|\n"
    "| Ann | 3 | Ulm |\n| Bob | 4 | Ulm |\n| Cid | 5 | Bonn |\n"
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (PROGRAM, "code"),
        ('#include <stdio.h>\nint main() {\n  puts("hi");\n  return 0;\n}\n', "code"),
        (f"一个例子：\n```python\n{PROGRAM}```\n", "code"),
        (TABLE, "table"),
        ("a\tb\tc\n1\t2\t3\n4\t5\t6\n7\t8\t9\n", "table"),
    ],
)
def test_code_and_tables_are_left_alone_and_counted(text, kind):
    cleaned = Cleaner("web")(text)
    assert cleaned.text == text
    assert dict(cleaned.notes) == {f"skipped.{kind}": 1}


@pytest.mark.parametrize("text", [ENGLISH, CHINESE, POEM, ENGLISH.replace(", ", ",\n")])
def test_prose_is_neither_code_nor_a_table(text):
    assert Cleaner("web")(text).notes == {}


def test_text_that_is_known_to_be_code_is_left_alone():
    assert Cleaner("web")("x", is_code=True).text == "x"
