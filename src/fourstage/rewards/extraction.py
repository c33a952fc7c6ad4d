"""Where a response says its answer: a box, `####`, tags, "The answer is"; or its last number.

Responses are read in the process that trains: no pattern here takes more than time linear in one.
"""

from __future__ import annotations

import re

from fourstage.data.shapes.truth import last_boxed

_MARK = re.compile(r"####[ \t]*([^\n]*)")
_TAGGED = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_SAID = re.compile(
    r"\b(?:the|my)?\s*(?:final\s+|correct\s+|best\s+)?answer\s*(?:is|:|=)\s*(?::\s*)?(\S[^\n]*)",
    re.IGNORECASE,
)
_PLACE = re.compile(r"\\boxed|####|<answer>|\banswer(?:\s+is\b|\s*:)", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.,])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:\s?/\s?\d+)?(?![\d])")
_EMPHASIS = "*_` \t\r\n"
# `(B)`, `B)`, `B.`, `B:`, `**B**`, or the letter alone.
_LETTER = r"[(\[{{*_`\s]*([{letters}])(?![A-Za-z0-9'])"
# Reasoning is no place for an answer.
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)


def told_answer(response: str) -> str | None:
    """What a response gives as its answer, at a place for one; None where there is no such place.

    In the order in which places count: the last `\\boxed{...}`, the last `#### ...`, the last
    `<answer>...</answer>`, and "The answer is ..." in the last line that is not empty. What stands
    before `</think>` is passed over.
    """
    response = without_thought(response)
    if boxed := last_boxed(response):
        return boxed
    for places in (_MARK, _TAGGED):
        if found := places.findall(response):
            return _trimmed(found[-1]) or None
    lines = [line for line in response.splitlines() if line.strip()]
    said = _SAID.findall(lines[-1]) if lines else []
    return (_trimmed(said[-1]) or None) if said else None


def names_a_place(prompt: str) -> bool:
    """Whether a prompt says or shows where the answer is to stand."""
    return _PLACE.search(prompt) is not None


def last_number(response: str) -> str | None:
    """The last number of a response as it stands there, such as `1,250.50`."""
    found = _NUMBER.findall(without_thought(response))
    return found[-1] if found else None


def chosen_letter(response: str, letters: str, lenient: bool = False) -> str | None:
    """The letter of a multiple choice that a response settles on, in capitals.

    Taken from a place for answers, else from a response that begins with the letter alone or the
    letter and a mark: `B`, `(B)`, `B.`, `B) because ...`.

    Args:
        letters: those there are, such as "ABCD".
        lenient: whether the last letter that stands alone will do.
    """
    letter = re.compile(_LETTER.format(letters=letters + letters.lower()))
    told = told_answer(response)
    if told is not None:
        told = re.sub(r"^\\(?:text|mathrm|mathbf|textbf)\s*{(.*)}$", r"\1", told)
        told = re.sub(r"^(?:option|choice)\s+", "", told, flags=re.IGNORECASE)
        found = letter.match(told)
        return found[1].upper() if found else None
    response = without_thought(response).strip()
    begun = re.match(rf"[(\[*_`]*([{letters}{letters.lower()}])[)\].:*_`,]*(?:\s|$)", response)
    if begun and (len(begun[0].strip()) > 1 or len(begun[0].strip()) == len(response)):
        return begun[1].upper()
    if not lenient:
        return None
    # "A cat" has an article and "I think" a person; small letters are words more often than not.
    alone = re.findall(rf"(?<![\w'])([{letters}])(?![\w'])(?!(?<=[AI]) (?!is\b)[a-z])", response)
    return alone[-1] if alone else None


def without_thought(response: str) -> str:
    """A response behind its reasoning, where that is marked."""
    return _THOUGHT.sub("", response)


def _trimmed(text: str) -> str:
    return text.lstrip(_EMPHASIS).rstrip(_EMPHASIS + ".")
