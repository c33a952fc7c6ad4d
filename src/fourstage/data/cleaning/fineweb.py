"""Rules of FineWeb on lines, and their counterparts for scripts without spaces.

Penedo et al. 2024, "The FineWeb Datasets: Decanting the Web for the Finest Text Data at Scale",
section 3.6, with datatrove's defaults: of the characters a hundredth may lie in repeated lines.
"""

from __future__ import annotations

import re

from fourstage.data.cleaning.features import Features
from fourstage.data.cleaning.repetition import repeated
from fourstage.data.cleaning.verdict import KEPT, Verdict, above, below

LEAST_ENDED_LINES = 0.12
MOST_SHORT_LINES = 0.67
MOST_REPEATED = 0.01
# The paper's own bound: Chinese lines are a third as long, and ingredients or headings return.
MOST_REPEATED_UNSPACED = 0.1
# Characters up to which a line is short. Ten Chinese characters say what thirty of English do, and
# a line of two five-character verses has twelve with its marks.
_SHORT = 30
_SHORT_UNSPACED = 10
# Lines a word; and a character, of which a Chinese word has 1.6.
_LINES_A_WORD = 0.3
_LINES_A_CHARACTER = 0.19
_ENDS = tuple(".?!。！？．｡‼⁇⁈⁉‽؟۔।॥։።፧။៕")
# Chinese steps and captions often end in no mark; what tells them from menus is one within.
_MARK_UNSPACED = re.compile("[，。；！？…]")


def fineweb(features: Features) -> Verdict:
    """Drops lists and pages of fragments.

    Dropped are documents of which fewer than 12% of the lines end in a mark that ends a sentence,
    more than 67% are of 30 characters or fewer, that have more than 1% of their characters in
    repeated lines, or more than 0.3 line ends a word.
    """
    return _judge(features) or KEPT


def _judge(features: Features) -> Verdict | None:
    unspaced = features.is_unspaced
    lines = [line for line in features.text.split("\n") if line.strip()]
    if not lines:
        return Verdict("empty", "no line")
    if unspaced:
        ended = sum(1 for line in lines if _MARK_UNSPACED.search(line) or line.endswith(_ENDS))
    else:
        ended = sum(line.endswith(_ENDS) for line in lines)
    short = _SHORT_UNSPACED if unspaced else _SHORT
    ends = features.text.count("\n")
    return (
        below("ended_lines", ended / len(lines), LEAST_ENDED_LINES)
        or above(
            "short_lines", sum(len(line) <= short for line in lines) / len(lines), MOST_SHORT_LINES
        )
        or above(
            "repeated",
            repeated(lines)[1] / (len(features.text) - ends),
            MOST_REPEATED_UNSPACED if unspaced else MOST_REPEATED,
        )
        or above(
            "list",
            ends / len(features.words),
            _LINES_A_CHARACTER if unspaced else _LINES_A_WORD,
        )
    )
