"""The published rules of quality, against their plainest form and on cases of each."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.cleaning import Cleaner
from fourstage.data.cleaning.c4 import c4, count_sentences, terminal
from fourstage.data.cleaning.features import Features
from fourstage.data.cleaning.fineweb import fineweb
from fourstage.data.cleaning.gopher import gopher
from fourstage.data.cleaning.repetition import repeated_grams, repetition
from test_data_cleaning import CHINESE, ENGLISH, POEM

WORDS = ENGLISH.split()


@given(st.lists(st.integers(0, 3), max_size=60))
def test_repeated_grams_are_those_that_occur_more_than_once(ids):
    for grams in repeated_grams(ids, 10):
        windows = [tuple(ids[i : i + grams.n]) for i in range(len(ids) - grams.n + 1)]
        counts = Counter(windows)
        assert grams.positions.tolist() == [i for i, w in enumerate(windows) if counts[w] > 1]
        if windows:
            # Of several that are as frequent, Counter gives the one it saw first.
            gram, times = counts.most_common(1)[0]
            first, often = grams.top()
            assert (windows[first], often) == (gram, times)
        seen, again, index = set(), [], 0
        while index < len(windows):
            if windows[index] in seen:
                again.append(index)
                index += grams.n
            else:
                seen.add(windows[index])
                index += 1
        assert grams.again() == again


def test_words_are_cut_as_linguists_do():
    text = "The U.S. isn't well-known, e.g. at www.a.com/b?c=d: $3.14 ... it’s 10:30."
    assert Features(text).words == [
        *("The", "U.S.", "is", "nʼt", "well", "-", "known", ",", "e.g.", "at", "www.a.com"),
        *("/", "b", "?", "c", "=", "d", ":", "$", "3.14", "...", "it", "’s", "10:30", "."),
    ]
    assert Features("我有2只cats。").words == ["我", "有", "2", "只", "cats", "。"]
    assert Features("हिन्दी भाषा").words == ["हिन्दी", "भाषा"]


def _lines(count: int) -> list[str]:
    return [" ".join(WORDS[i : i + 12]) for i in range(0, 12 * count, 12)]


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("short", " ".join(WORDS[:40])),
        ("long_words", " ".join(["incomprehensibilities of the"] * 3 + ["extraordinarily"] * 60)),
        ("short_words", "a I be " * 40),
        (
            "symbol_ratio",
            " ".join(f"#{word}" if i % 5 == 0 else word for i, word in enumerate(WORDS)),
        ),
        ("ellipsis_ratio", " ... ".join(" ".join(WORDS[i : i + 4]) for i in range(0, 100, 4))),
        ("bullet_lines", "\n".join(f"- {line}" for line in _lines(10))),
        ("ellipsis_lines", "\n".join(f"{line}..." for line in _lines(10))),
        ("letters", " ".join(f"{word} {1000 + i}" for i, word in enumerate(WORDS))),
        ("stop_words", " ".join(f"word{'abcdefgh'[i % 8]}{'xyz'[i % 3]}" for i in range(80))),
    ],
)
def test_gopher_names_the_rule_and_the_number(rule, text):
    verdict = gopher(Features(text))
    assert verdict.rule == rule
    assert verdict.detail


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("duplicate_lines", "\n".join([*_lines(4), *_lines(4)])),
        ("duplicate_paragraphs", "\n\n".join([*_lines(4), *_lines(4)])),
        ("top_2_gram", ENGLISH + " buy boots" * 60),
        ("duplicate_5_gram", f"{ENGLISH} {ENGLISH[100:350]}"),
        ("top_2_gram", CHINESE + "好好学习。" * 40),
    ],
)
def test_repetition_names_the_rule(rule, text):
    assert repetition(Features(text)).rule == rule


def test_a_poem_repeats_nothing():
    assert not repetition(Features(POEM)).rule


def test_sentences_end_where_they_do():
    assert (
        count_sentences(
            "Mr. Smith of the U.S. paid 3.50 dollars. He left! Why? “Nobody knows.” So."
        )
        == 5
    )
    assert count_sentences("one") == 1
    assert count_sentences("你好。再见！真的吗？") == 3


def test_c4_leaves_out_lines_and_drops_pages():
    notices = "Our privacy policy has changed a lot.\nHere JavaScript is needed now."
    page = f"Menu\n{ENGLISH}\n{notices}\nA fact.[12]"
    verdict = c4(Features(page))
    assert verdict.text == ENGLISH
    assert dict(verdict.edits) == {"lines": 4}
    assert c4(Features(ENGLISH + "\nThis is lorem ipsum text.")).rule == "lorem_ipsum"
    assert c4(Features(ENGLISH + "\nThis is a {bracket} here.")).rule == "curly_bracket"
    assert c4(Features("One sentence is here. Two are here.")).rule == "sentences"


def test_terminal_leaves_out_lines_that_end_no_sentence():
    page = f'A heading of the page\n{ENGLISH}\nand so on...\n“Quoted."'
    assert terminal(Features(page)).text == f'{ENGLISH}\n“Quoted."'
    assert terminal(Features(f"标题没有标点\n{CHINESE}")).text == CHINESE


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("ended_lines", "\n".join(f"{line} and more words" for line in _lines(9))),
        (
            "short_lines",
            "\n".join([*["Short one."] * 1, *(f"Line {w}." for w in WORDS[:20]), ENGLISH]),
        ),
        ("repeated", "\n".join([*(f"{line}." for line in _lines(9)), f"{_lines(1)[0]}."])),
        (
            "list",
            "\n".join(f"extraordinarily{i} thingamabob{i}again." for i in range(20)),
        ),
    ],
)
def test_fineweb_names_the_rule(rule, text):
    assert fineweb(Features(text)).rule == rule


@pytest.mark.parametrize(
    "text", ["\n".join(CHINESE.replace("。", "。\n").split("\n")), CHINESE.replace("，", "，\n")]
)
def test_chinese_is_measured_by_characters(text):
    assert Cleaner("web")(text).text is not None


def test_chinese_noise_is_dropped():
    menu = "\n".join(f"{a}{b}" for a in "新闻体育财经娱乐" for b in ("频道", "中心", "专题"))
    assert Cleaner(["fineweb"])(menu).text is None
    assert Cleaner(["gopher"])(
        "价格：１２３４５６７８９" * 30 + "99 88 77 " * 50
    ).reason.startswith("gopher.")


def _made(seed: int) -> str:
    """A page as there are on the web: prose with some fault."""
    draw = random.Random(seed)
    words = draw.choices(WORDS, k=draw.randrange(20, 300))
    lines = [" ".join(words[i : i + 15]) for i in range(0, len(words), 15)]
    lines = [line + draw.choice([".", "", "...", "!"]) for line in lines]
    lines += [draw.choice(lines)] * draw.randrange(3)
    return draw.choice(["\n", "\n\n"]).join(lines)


@pytest.mark.parametrize("rule", ["gopher", "repetition", "fineweb"])
def test_decisions_are_those_of_datatrove(rule):
    filters = pytest.importorskip("datatrove.pipeline.filters")
    pytest.importorskip("spacy")
    data = pytest.importorskip("datatrove.data")
    name, ours = {
        "gopher": ("GopherQualityFilter", gopher),
        "repetition": ("GopherRepetitionFilter", repetition),
        "fineweb": ("FineWebQualityFilter", fineweb),
    }[rule]
    theirs = getattr(filters, name)()
    texts = [_made(seed) for seed in range(200)]
    kept = [theirs.filter(data.Document(text=text, id="")) is True for text in texts]
    assert sum((not ours(Features(t)).rule) == k for t, k in zip(texts, kept, strict=True)) >= 196
