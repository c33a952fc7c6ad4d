"""The language of a text: by its script where that tells, by py3langid where it does not."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

from fourstage.errors import InputError, nearest
from fourstage.extras import require

UNDETERMINED = "und"
# py3langid knows 97; those of few speakers and little text are what it errs to on short texts.
LANGUAGES = (
    "ar bg bn ca cs da de el en es et fa fi fr he hi hr hu id it ja ko lt lv ms nl no pl pt ro ru "
    "sk sl sr sv sw ta th tr uk ur vi zh"
).split()
# Under so many letters, and under such a confidence, nothing is said.
LEAST_LETTERS = 20
LEAST_CONFIDENCE = 0.5
# The pieces of a long text that are looked at, and the characters of each.
_PIECES = 3
_PIECE = 160
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA_RANGES = "\u3041-\u309f\u30a1-\u30fa\uff66-\uff9d"
_HANGUL_RANGES = "\uac00-\ud7a3\u1100-\u11ff\u3131-\u318e"
_KANA, _HANGUL = re.compile(f"[{_KANA_RANGES}]"), re.compile(f"[{_HANGUL_RANGES}]")
_EASTERN = re.compile(f"[{_HAN}{_KANA_RANGES}{_HANGUL_RANGES}]")
_LETTER = re.compile(r"[^\W\d_]")
_ENOUGH = re.compile(rf"(?:[^\W\d_][\W\d_]*){{{LEAST_LETTERS}}}")
# Japanese is a third kana or more; Chinese quotes a name now and then.
_KANA_SHARE = 0.05
# A Chinese character says as much as about three letters.
_LETTERS_A_CHARACTER = 3
# Most text is English, and is told at a tenth of the cost by these: one in fifty characters, four
# of them different. Running English has twice as many.
_ENGLISH = re.compile(
    r"\b(?:the|of|and|that|with|this|are|was|from|have|you|your|which|their|has|they|will|can|been"
    r"|by)\b"
)
_ENGLISH_SPACING = 50
_ENGLISH_KINDS = 4


def identify(text: str) -> tuple[str, float]:
    """The language (ISO 639-1) and how sure that is, in [0, 1]; ("und", ...) where it is not.

    Chinese, in both scripts, Japanese and Korean are told by their characters; what share they have
    of the letters is the confidence. Long texts are judged by their beginning, middle and end.

    Raises:
        InputError: py3langid is not installed.
    """
    sample = _sample(text)
    if not sample.isascii() and (eastern := len(_EASTERN.findall(sample))):
        letters = len(_LETTER.findall(sample))
        share = _LETTERS_A_CHARACTER * eastern / (letters + (_LETTERS_A_CHARACTER - 1) * eastern)
        if share > LEAST_CONFIDENCE:
            return _eastern(sample, eastern), share
    if not _ENOUGH.search(sample):
        return UNDETERMINED, 0.0
    if _is_plain_english(sample):
        return "en", 1.0
    language, confidence = _identifier().classify(sample)
    return (language if confidence >= LEAST_CONFIDENCE else UNDETERMINED), float(confidence)


def _eastern(sample: str, eastern: int) -> str:
    """Which of Chinese, Japanese and Korean a text of so many characters of them is in."""
    if _LETTERS_A_CHARACTER * eastern < LEAST_LETTERS:
        return UNDETERMINED
    if 2 * len(_HANGUL.findall(sample)) > eastern:
        return "ko"
    return "ja" if len(_KANA.findall(sample)) > _KANA_SHARE * eastern else "zh"


def _is_plain_english(sample: str) -> bool:
    """Whether English function words are as many and as various as no other language has them."""
    found = _ENGLISH.findall(sample)
    return len(found) * _ENGLISH_SPACING >= len(sample) and len(set(found)) >= _ENGLISH_KINDS


def checked(languages: Sequence[str]) -> tuple[str, ...]:
    """The languages, each known by that code.

    Raises:
        InputError: one is not.
    """
    for language in languages:
        if language not in LANGUAGES:
            raise InputError(
                f"data.languages={language}: not among those that are told apart"
                f"{nearest(language, LANGUAGES)}; write some of {', '.join(LANGUAGES)}"
            )
    return tuple(languages)


def _sample(text: str) -> str:
    if len(text) <= _PIECES * _PIECE:
        return text
    last = len(text) - _PIECE
    starts = [last * i // (_PIECES - 1) for i in range(_PIECES)]
    return "\n".join(text[start : start + _PIECE] for start in starts)


@functools.cache
def _identifier() -> Any:
    langid = require("py3langid.langid", "data", "to tell languages")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(LANGUAGES)
    return identifier
