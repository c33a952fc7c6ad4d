"""Code and tables: texts for which the rules of prose do not hold."""

from __future__ import annotations

import re
from itertools import islice

# Enough to tell; the first lines of a file of code are as much code as the rest.
_LINES = 400
# Longer lines are of no code that people write, and would be slow to match.
_LONGEST = 400
_LEAST_LINES = 3
# Share of lines that read as code from which a text is code; smaller where one can be nothing else,
# as in short functions under a long comment. 300 pages of C4 hold no such line at all, novels with
# wrapped lines up to a twentieth.
_CODE_SHARE = 0.2
_CODE_SHARE_WITH_SIGN = 0.06
_TABLE_SHARE = 0.6
_FENCE = re.compile(r"^ {0,3}(?:```|~~~)", re.MULTILINE)
_LATEX = re.compile(r"\\[A-Za-z]+\{")
_MATHS = 3
_SIGN = re.compile(
    r"^[ \t]*(?:(?:async )?def \w+\(.*|class \w+(?:\(.*\))?:|#include [<\"].*|fn \w+[(<].*\{"
    r"|func(?:tion)? \w+\(.*\{|(?:public|private) [\w<> ]+\(.*\{)$",
    re.MULTILINE,
)
_CODE_LINE = re.compile(
    r"""[ \t]*(?:
      (?:async[ ])?def[ ]\w+\(|class[ ]\w+[(:{ ]
    | from[ ][\w.]+[ ]import[ ]|import[ ][\w.{*]+(?:[ ;,]|$)
    | \#[ ]*(?:include|define|ifn?def|pragma|endif)\b|\#!/
    | (?:(?:public|private|protected|static|export|async|pub|final|virtual)[ ])+\w+
    | (?:function|func|fn)[ ]\w+[ ]?[(<]|(?:const|let|var|val|auto)[ ][\w{[(]+.*[=;]
    | (?:if|elif|while|for|switch|else[ ]if)\b.*(?:[:{]|\)[ ]*\S.*;)$
    | (?:else|try|finally|do)[ ]*[:{]$|except\b.*:$
    | (?:return|raise|throw|yield|assert|break|continue|pass)\b(?:.*[;)\]'"\d\w]$|$)(?<![.!?])
    | (?:SELECT|INSERT|UPDATE|CREATE|DELETE|ALTER)[ ].*(?:FROM|INTO|SET|TABLE|WHERE)\b
    | [\w.\[\]'"]+(?:,[ ]*[\w.\[\]]+)*[ ]*(?:[-+*/|&]?=|:=)[ ]*\S.*[\w)\]}'";,(\[{\\]$
    | [\w.:>-]+\(.*\)[ ]*[;{]?$|<[/!]?[a-z][\w-]*(?:[ ][^>]*)?>(?:.*>)?$|@\w[\w.]*(?:\(.*\))?$
    | [)}\]]+[;,)]*$|.*\{$|.*[(=\[].*;$|//.*|/\*.*|\*/$|>>>[ ].*|"[^"]+":[ ].*,?$
    | \\[A-Za-z]+[{\[].*
    )""",
    re.VERBOSE,
)


def looks_like_code(text: str) -> bool:
    """Whether a document is code, or prose about it that shows code or formulas in LaTeX.

    Programs are told by the share of their lines that read as such; prose by a fenced block or by
    several LaTeX commands.
    """
    if ("```" in text or "~~~" in text) and _FENCE.search(text):
        return True
    if "\\" in text and sum(1 for _ in islice(_LATEX.finditer(text), _MATHS)) == _MATHS:
        return True
    # Each of the lines that count holds one of these, and much prose holds none.
    if not any(mark in text for mark in "();{}=<"):
        return False
    share = _share(text)
    if share >= _CODE_SHARE:
        return True
    return share >= _CODE_SHARE_WITH_SIGN and _SIGN.search(text) is not None


def looks_like_table(text: str) -> bool:
    """Whether most lines are rows of one table: in Markdown, or split by tabs, bars or commas.

    Rows have at least three cells, and all the same number of them.
    """
    for separator in ("\t", "|", ",", ";"):
        if text.count(separator) < 2 * _LEAST_LINES:
            continue
        lines = [line for line in islice(text.split("\n"), _LINES) if line.strip()]
        counts = [line.count(separator) for line in lines]
        usual = max(set(counts), key=lambda count: (counts.count(count), count))
        rows = counts.count(usual)
        prose = separator in ",;" and sum(map(len, lines)) > 25 * (usual + 1) * len(lines)
        if usual >= 2 and rows >= max(_LEAST_LINES, _TABLE_SHARE * len(lines)) and not prose:
            return True
    return False


def _share(text: str) -> float:
    """Share of the lines that are not blank that read as code; 0 for a single one."""
    lines = [line for line in islice(text.split("\n"), _LINES) if line.strip()]
    found = sum(1 for line in lines if len(line) <= _LONGEST and _CODE_LINE.match(line))
    return found / len(lines) if found > 1 else 0.0
