"""Instructions whose keeping a program can see: lengths, words, beginnings and ends.

After Zhou et al., *Instruction-Following Evaluation for Large Language Models* (2023). Nothing here
knows a language: a word is a run of letters and digits, or one Chinese character.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fourstage.errors import InputError, nearest
from fourstage.rewards.contracts import EachAlone, Item, Outcome
from fourstage.rewards.extraction import without_thought
from fourstage.rewards.ifeval import from_ifeval

_WORD = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]|[^\W_\u3400-\u9fff\uf900-\ufaff]+(?:['’-]\w+)*")
_SENTENCE_END = re.compile(
    r"(?<![.!?…。！？])[.!?…。！？]+[\"'”’)\]」』）]*(?=\s|$|[\u3400-\u9fff])"
)
_BULLET = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)])[ \t]+\S", re.MULTILINE)
_BOUNDS = ("at_least", "at_most", "exactly")

COUNTS: dict[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(_WORD.findall(text)),
    "sentences": lambda text: _sentences(text),
    "paragraphs": lambda text: len([part for part in re.split(r"\n\s*\n", text) if part.strip()]),
    "lines": lambda text: len([line for line in text.splitlines() if line.strip()]),
    "bullets": lambda text: len(_BULLET.findall(text)),
}
# name -> whether the text keeps to it, given the argument
CHECKS: dict[str, Callable[[str, Any], bool]] = {
    "keywords": lambda text, words: all(_times(text, word) for word in words),
    "forbidden": lambda text, words: not any(_times(text, word) for word in words),
    "starts_with": lambda text, start: text.casefold().startswith(start.strip().casefold()),
    "ends_with": lambda text, end: text.casefold().endswith(end.strip().casefold()),
    "case": lambda text, case: text == (text.upper() if case == "upper" else text.lower()),
    "without": lambda text, parts: not any(part in text for part in parts),
    "quoted": lambda text, wanted: (_is_quoted(text)) == wanted,
    "json": lambda text, wanted: _is_json(text) == wanted,
}
_LISTS = ("keywords", "forbidden", "without")
# A word -> how often: {"times": {"word": "sea", "at_least": 2}}
_TIMES = "times"
NAMES = (*COUNTS, *CHECKS, _TIMES)


class Constraints(EachAlone):
    """1 where a response keeps to all constraints, else 0; or the share that it keeps to.

    Constraints are a mapping, or a list of mappings where one is needed twice:
    `{"words": {"at_least": 30, "at_most": 60}, "keywords": ["sea"], "case": "lower"}`. Rows of
    IFEval (`instruction_id_list` and `kwargs`) are translated.

    Args:
        constraints: for all rows; each row's own are added.
        column: of the row's own; without one the ground truth (as JSON), or IFEval's.
        partial: whether the share counts.
    """

    def __init__(
        self,
        constraints: Any = None,
        column: str | None = None,
        partial: bool = False,
    ):
        self.constraints, self.column, self.partial = constraints, column, partial

    def start(self, say: Callable[[str], None]) -> None:
        faults = [fault for name, value in _pairs(self.constraints) if (fault := _bad(name, value))]
        if faults:
            raise InputError(*faults)

    def unfit(self, item: Item) -> str:
        try:
            found = self._all(item)
        except InputError as error:
            return str(error)
        if not found:
            return f"the row has no constraints in {self.column or 'its ground truth'}"
        return next((fault for name, value in found if (fault := _bad(name, value))), "")

    def of(self, item: Item) -> Outcome:
        text = without_thought(item.response).strip()
        kept = {f"{name}={value}": keeps(text, name, value) for name, value in self._all(item)}
        share = sum(kept.values()) / len(kept)
        broken = ", ".join(each for each, is_kept in kept.items() if not is_kept)
        score = share if self.partial else float(share == 1.0)
        return Outcome(score, note=f"broken: {broken}"[:120] if broken else "")

    def _all(self, item: Item) -> list[tuple[str, Any]]:
        """(name, argument) of each constraint of an item.

        Raises:
            InputError: its row holds something else.
        """
        own = item.value(self.column)
        if self.column is None and "instruction_id_list" in item.columns:
            own = from_ifeval(item.columns)
        try:
            return [*_pairs(self.constraints), *_pairs(_unpacked(own))]
        except InputError:
            # A ground truth of another kind is no fault where the recipe has constraints.
            if self.constraints is None or self.column is not None:
                raise
            return _pairs(self.constraints)


def _unpacked(value: Any) -> Any:
    """What JSON holds.

    Raises:
        InputError: a text is none.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InputError(f"constraints {value[:60]!r} are no JSON: {error}") from error


def keeps(text: str, name: str, value: Any) -> bool:
    """Whether a text keeps to one constraint that is well-formed."""
    if name in COUNTS:
        return _within(COUNTS[name](text), value)
    if name == _TIMES:
        return _within(_times(text, value["word"]), value)
    return CHECKS[name](text, value)


def _pairs(given: Any) -> list[tuple[str, Any]]:
    """(name, argument) of each constraint of a mapping or of several.

    Raises:
        InputError: it is something else.
    """
    if given is None:
        return []
    several = given if isinstance(given, list) else [given]
    if not all(isinstance(each, Mapping) for each in several):
        raise InputError(
            f'constraints {given!r} are no mapping, such as {{"words": {{"at_most": 50}}}}'
        )
    return [pair for each in several for pair in each.items()]


def _bad(name: str, value: Any) -> str:
    """What is wrong with a constraint."""
    if name not in NAMES:
        return f"no constraint {name!r}{nearest(str(name), NAMES)} (there are: {', '.join(NAMES)})"
    if name in COUNTS or name == _TIMES:
        return next(_bad_bounds(name, value), "")
    if name in _LISTS:
        is_good = isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)
        return "" if is_good else f"{name}={value!r} is no list of words"
    if name == "case":
        return "" if value in ("upper", "lower") else f"case={value!r}: write upper or lower"
    if name in ("quoted", "json"):
        return "" if isinstance(value, bool) else f"{name}={value!r}: write true or false"
    return "" if isinstance(value, str) and value.strip() else f"{name}={value!r} is no text"


def _bad_bounds(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, int) and not isinstance(value, bool) and name != _TIMES:
        return
    if not isinstance(value, Mapping):
        yield f"{name}={value!r}: write a mapping, such as {{at_least: 2}}"
        return
    bounds = {
        key: number for key, number in value.items() if not (name == _TIMES and key == "word")
    }
    for key, number in bounds.items():
        if key not in _BOUNDS:
            yield f"{name} has the bound {key!r}{nearest(str(key), _BOUNDS)}"
        elif not isinstance(number, int) or isinstance(number, bool) or number < 0:
            yield f"{name}.{key}={number!r} is no whole number"
    if not bounds:
        yield f"{name} has no bound: write one of {', '.join(_BOUNDS)}"
    if name == _TIMES and not (isinstance(value.get("word"), str) and value["word"].strip()):
        yield f"times={value!r} names no word"


def _within(number: int, bounds: Mapping[str, Any] | int) -> bool:
    if isinstance(bounds, int):
        return number == bounds
    exactly = bounds.get("exactly", number)
    return (
        bounds.get("at_least", 0) <= number <= bounds.get("at_most", number) and number == exactly
    )


def _times(text: str, word: str) -> int:
    """How often a word or phrase stands in a text, whatever its case, and not within a word.

    Chinese characters have no spaces between words: there it may stand anywhere.
    """
    word = word.strip().casefold()
    before = r"(?<![^\W_\u3400-\u9fff])" if _is_spaced(word[0]) else ""
    after = r"(?![^\W_\u3400-\u9fff])" if _is_spaced(word[-1]) else ""
    return len(re.findall(before + re.escape(word) + after, text.casefold()))


def _is_spaced(character: str) -> bool:
    return character.isalnum() and not "\u3400" <= character <= "\u9fff"


def _sentences(text: str) -> int:
    """Ends of sentences; a text that breaks off has one more, and so has a line without an end."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    rest = text[ends[-1] :] if ends else text
    return len(ends) + bool(_WORD.search(rest))


def _is_quoted(text: str) -> bool:
    pairs = ('""', "“”", "''", "‘’", "«»", "「」")
    return len(text) > 1 and any(text[0] == a and text[-1] == b for a, b in pairs)


def _is_json(text: str) -> bool:
    text = re.sub(r"^```(?:json)?\s*\n(.*)\n```$", r"\1", text, flags=re.DOTALL)
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
