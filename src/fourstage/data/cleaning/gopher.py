"""Quality rules of Gopher, and their counterparts for scripts without spaces between words.

Rae et al. 2021, "Scaling Language Models: Methods, Analysis & Insights from Training Gopher",
appendix A.1.1; symbols are counted as words for the ratios, as in datatrove.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fourstage.data.cleaning.features import Features
from fourstage.data.cleaning.verdict import KEPT, Verdict, above, below

# Function words, of which running text has at least two. English ones are the paper's.
STOP_WORDS = {
    "en": frozenset("the be to of and that have with".split()),
    "de": frozenset("der die und das nicht ist ein mit".split()),
    "es": frozenset("el los que una por las con del".split()),
    "fr": frozenset("le les des est une dans du et".split()),
    "id": frozenset("yang dan di dengan untuk ini dari tidak".split()),
    "it": frozenset("il che di della per una sono con".split()),
    "nl": frozenset("het een van niet zijn dat en voor".split()),
    "pl": frozenset("nie się że jest na do jak przez".split()),
    "pt": frozenset("não uma para os com que da em".split()),
    "ru": frozenset("и в не на что с это как".split()),
    "sv": frozenset("och att det som är inte för på".split()),
    "tr": frozenset("ve bir bu için çok ile daha olarak".split()),
    "vi": frozenset("và của là các có được trong một".split()),
    "zh": frozenset(
        "的是在了有和不我这這一之其而以也于於者無无为為人到他就可中何如自相未已將将來来得所從从欲更若"
    ),
    "ja": frozenset("のにはをたがでとて"),
}
_LEAST_STOP_WORDS = 2
_HAN_OR_KANA = re.compile("[\u3041-\u30ff\u3400-\u9fff]")
_BULLETS = ("•", "-")
_BULLETS_UNSPACED = ("•", "-", "·", "●", "○", "■", "◆", "★", "*")


@dataclass(frozen=True)
class Bounds:
    """What a document may be, in words, or in characters of scripts without spaces."""

    least_words: int
    most_words: int
    least_mean_length: float
    most_mean_length: float
    symbols: float
    lettered: float
    bullet_lines: float = 0.9
    ellipsis_lines: float = 0.3


SPACED = Bounds(50, 100_000, 3, 10, 0.1, 0.8)
# A Chinese word has about 1.6 characters, hence the counts; length in words tells nothing where
# a character is one. Among characters marks and figures weigh more than among words: with 0.8
# letters, 61% of the 338 pages of a cookbook and 4% of 3,000 poems would go, with 0.65 one of each.
UNSPACED = Bounds(80, 160_000, 0, 1e9, 0.06, 0.65)


def gopher(features: Features) -> Verdict:
    """Drops documents that Gopher's rules of quality call no running text.

    Rules, with their bounds in words: 50 to 100,000 words; mean length 3 to 10; `#` or ellipses
    at most 0.1 a word; at most 90% of the lines begin with a bullet and 30% end in an ellipsis;
    80% of the words hold a letter; two function words. Languages of which no function words are
    known are not judged by them. That marks count as words for the 80%, as in datatrove, also
    drops prose with many quotes, initials or figures: of 300 pages of C4 it drops 29.
    """
    return _judge(features, UNSPACED if features.is_unspaced else SPACED) or KEPT


def _judge(features: Features, bounds: Bounds) -> Verdict | None:
    words, tally, text = len(features.words), features.tally, features.text
    if fault := below("short", tally.proper, bounds.least_words):
        return fault
    mean = tally.characters / tally.proper
    return (
        above("long", tally.proper, bounds.most_words)
        or below("short_words", mean, bounds.least_mean_length)
        or above("long_words", mean, bounds.most_mean_length)
        or above("symbol_ratio", text.count("#") / words, bounds.symbols)
        or above("ellipsis_ratio", _ellipses(text) / words, bounds.symbols)
        or _lines(features, bounds)
        or below("letters", tally.lettered / words, bounds.lettered)
        or _stop_words(features)
    )


def _ellipses(text: str) -> int:
    # A Chinese ellipsis is written as two.
    return text.count("...") + text.count("…") - text.count("……")


def _lines(features: Features, bounds: Bounds) -> Verdict | None:
    lines = features.lines
    signs = _BULLETS_UNSPACED if features.is_unspaced else _BULLETS
    bullets = sum(line.lstrip().startswith(signs) for line in lines)
    ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    return above("bullet_lines", bullets / len(lines), bounds.bullet_lines) or above(
        "ellipsis_lines", ellipses / len(lines), bounds.ellipsis_lines
    )


def _stop_words(features: Features) -> Verdict | None:
    known = _stop_words_of(features)
    if known is None:
        return None
    return below("stop_words", len(known & features.counts.keys()), _LEAST_STOP_WORDS)


def _stop_words_of(features: Features) -> frozenset[str] | None:
    if features.language != "und":
        return STOP_WORDS.get(features.language)
    if features.is_unspaced:
        # Thai and its neighbours have none here.
        return STOP_WORDS["zh"] | STOP_WORDS["ja"] if _HAN_OR_KANA.search(features.text) else None
    return STOP_WORDS["en"] if features.is_latin else None
