"""Ground truth: what an answer can be checked by."""

from __future__ import annotations

import re
from typing import Any

from fourstage.data.shapes.row import Malformed
from fourstage.data.shapes.values import Columns, json_text, kind_of, plain_text, unpacked

# Keys that hold nothing else, and those that do where the row says its answer elsewhere.
TRUTHS = ("ground_truth", "final_answer", "expected_answer", "gold_answer", "reference_answer")
OR_TRUTHS = ("answer", "gold", "target", "solution")
_BOXED = re.compile(r"\\f?boxed\s*{")
_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_BARE = re.compile(
    r"[-+]?[$€£¥]?\s?\d[\d,. ]*(?:[/:^]\s?-?\d+)?\s?[%°]?|\(?[A-Ja-j]\)?|yes|no|true|false",
    re.IGNORECASE,
)


def told_truth(columns: Columns, said: str = "") -> str | None:
    """The ground truth that a key of its own holds; None where there is none, or an empty one.

    Args:
        said: the key of the answer itself, which is no ground truth.
    """
    model = unpacked(columns.get("reward_model"))
    if isinstance(model, dict) and (told := _truth(model.get("ground_truth"))):
        return told
    if key := columns.first(TRUTHS):
        return _truth(columns[key])
    key = columns.first(tuple(name for name in OR_TRUTHS if name != said))
    found = _truth(columns[key]) if key else None
    if found is None:
        return None
    # A whole solution is a way to the result, not what an answer is compared to.
    return final_answer(found) or (None if key == "solution" else found)


def _truth(value: Any) -> str | None:
    """A truth as text: of several the first, of an object its JSON."""
    if isinstance(value, list) and value and plain_text(value[0]) is not None:
        value = value[0]
    if value is None or value in ([], {}):
        return None
    text = plain_text(value)
    return (json_text(value) if text is None else text).strip() or None


def answer_text(value: Any, key: str) -> str:
    """An answer as text: a string, a number, or the first of several.

    Raises:
        Malformed: it is something else, or empty.
    """
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        # SQuAD's answers: their texts and where each begins.
        value = value["text"]
    if isinstance(value, dict) and "value" in value:
        # TriviaQA's, beside its aliases.
        value = value["value"]
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) and key.strip("'").lower() == "answer":
        # BoolQ's and StrategyQA's.
        return "yes" if value else "no"
    text = None if isinstance(value, bool) else plain_text(value)
    if text is None:
        raise Malformed(f"{key} is {kind_of(value)}: write a string")
    if not text.strip():
        raise Malformed(f"{key} is empty")
    return text.strip()


def final_answer(text: str) -> str | None:
    """The end result of a worked answer: after `####`, in a box or in tags, or all of a bare one.

    `####` is GSM8K's mark (Cobbe et al. 2021, arXiv:2110.14168), the box that of MATH (Hendrycks et
    al. 2021, arXiv:2103.03874).
    """
    if "####" in text:
        return text.rpartition("####")[2].strip() or None
    if boxed := last_boxed(text):
        return boxed
    if tagged := _TAGGED.findall(text):
        return tagged[-1].strip() or None
    return text.strip() if _BARE.fullmatch(text.strip()) else None


def last_boxed(text: str) -> str | None:
    """What stands in the last `\\boxed{...}`; None where none is closed, or it is empty."""
    begins = [match.end() for match in _BOXED.finditer(text)]
    if not begins:
        return None
    depth = 1
    for end in range(begins[-1], len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[begins[-1] : end].strip() or None
    return None
