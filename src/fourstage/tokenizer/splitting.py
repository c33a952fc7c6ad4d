r"""How text is cut into pieces before byte pairs merge, and the same cuts for tiktoken's engine.

Three rules, each with digits one by one or in threes:

`gpt2`: words, numbers and signs, each with the space in front of it (Radford et al., *Language
Models are Unsupervised Multitask Learners*, 2019).
`gpt4`: contractions in any case, one sign or space in front of a word, ends of lines with the
signs before them; the rule of cl100k, with which Llama 3 (three digits) and Qwen2 (one) are
trained, so that llama.cpp knows it as `llama-bpe` and `qwen2`.
`chinese`: as `gpt4`, but Han characters stand apart from Latin letters and from the signs around
them, eight at most. Under `gpt4` a comma merges with the clause after it: of 16,000 tokens trained
on Chinese prose and verse 1,799 held such a border, here none does, for up to 5% fewer bytes a
token on held-out Chinese and 0.6% more on English and code. Four at most would cost 7%: fixed
places cut words, and the shorter the pieces the more of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from tokenizers import Regex, pre_tokenizers

from fourstage.errors import InputError

# Han characters in a piece of the Chinese rule.
LONGEST_HAN = 8

Split = Literal["gpt2", "gpt4", "chinese"]

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_SIGNS_AND_LINES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|" + _SPACES
# No letter opens a contraction, so tiktoken's engine may try words first: 30% faster.
_GPT2_WORDS = r" ?\p{L}+|'(?:[stmd]|re|ve|ll)"
_GPT4_WORDS = rf"[^\r\n\p{{L}}\p{{N}}']?\p{{L}}+|{_CONTRACTIONS}|'\p{{L}}+"
_LATIN = r"[\p{L}&&[^\p{Han}]]"
_HAN = rf"\p{{Han}}{{1,{LONGEST_HAN}}}"
_CHINESE_WORDS = rf"{_HAN}|[^\r\n\p{{L}}\p{{N}}']?{_LATIN}+|{_CONTRACTIONS}|'{_LATIN}+"
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_UNCASED = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True)
class Twin:
    """One regular expression whose matches are the pieces of a pre-tokenizer.

    Attributes:
        pattern: as tiktoken takes it.
        classes: character classes on which both engines must agree for equal matches.
        by_rust: whether the pre-tokenizer finds its digits without a regular expression.
    """

    pattern: str
    classes: tuple[str, ...]
    by_rust: bool = False


_USUAL = (r"\p{L}", r"\p{N}", r"\s")
_FOLDED = "(?i:[delmrstv])"


def _digits(most: int) -> str:
    return r"\p{N}" if most == 1 else rf"\p{{N}}{{1,{most}}}"


def _gpt4(digits: int) -> str:
    words = rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{_digits(digits)}"
    return f"{_CONTRACTIONS}|{words}|{_SIGNS_AND_LINES}"


def _chinese(digits: int) -> str:
    words = rf"{_HAN}|[^\r\n\p{{L}}\p{{N}}]?{_LATIN}+|{_digits(digits)}"
    return f"{_CONTRACTIONS}|{words}|{_SIGNS_AND_LINES}"


def _o200k() -> str:
    lead, end = r"[^\r\n\p{L}\p{N}]?", f"{_CONTRACTIONS}?"
    words = f"{lead}{_CASED}*{_UNCASED}+{end}|{lead}{_CASED}+{_UNCASED}*{end}"
    signs = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|" + _SPACES
    return rf"{words}|\p{{N}}{{1,3}}|{signs}"


def _gpt2_twin(digits: int | None) -> Twin:
    """GPT-2's cuts; with `digits`, of the texts between runs of digits, which are cut first.

    A text in front of a digit ends there, so that white space in front of it is one piece.
    """
    signs = r" ?[^\s\p{L}\p{N}]+"
    if digits is None:
        return Twin(rf"{_GPT2_WORDS}| ?\p{{N}}+|{signs}|{_SPACES}", _USUAL)
    spaces = r"\s+(?![^\s\p{N}])|\s+"
    return Twin(f"{_GPT2_WORDS}|{signs}|{_digits(digits)}|{spaces}", _USUAL, by_rust=digits == 1)


# What stands in the Split of a pre-tokenizer -> its twin.
_TWINS = {
    **{
        _gpt4(digits): Twin(f"{_GPT4_WORDS}|{_digits(digits)}|{_SIGNS_AND_LINES}",
                            (*_USUAL, _FOLDED))
        for digits in (1, 3)
    },
    **{
        _chinese(digits): Twin(f"{_CHINESE_WORDS}|{_digits(digits)}|{_SIGNS_AND_LINES}",
                               (*_USUAL, r"\p{Han}", _FOLDED))
        for digits in (1, 3)
    },
    _o200k(): Twin(_o200k(), (*_USUAL, _CASED, _UNCASED, _FOLDED)),
}  # fmt: skip


def pre_tokenizer(split: str = "gpt4", digits: int = 1) -> pre_tokenizers.PreTokenizer:
    """The pieces within which bytes merge.

    Args:
        split: one of the rules above.
        digits: how many stand together at most: 1 or 3.

    Raises:
        InputError: another rule, or another number of digits.
    """
    if split not in get_args(Split):
        raise InputError(f"tokenizer.split={split}: write one of {', '.join(get_args(Split))}")
    if digits not in (1, 3):
        raise InputError(f"tokenizer.digits={digits}: write 1 or 3")
    if split == "gpt2":
        numbers = (
            pre_tokenizers.Digits(individual_digits=True)
            if digits == 1
            else pre_tokenizers.Split(Regex(_digits(digits)), "isolated")
        )
        by_regex = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([numbers, by_regex])
    pattern = _gpt4(digits) if split == "gpt4" else _chinese(digits)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def twin_of(description: dict[str, Any] | None) -> Twin | None:
    """The twin of a pre-tokenizer as tokenizer.json describes it; None where none is known."""
    description = description or {}
    steps = description.get("pretokenizers", [description])
    if not 1 <= len(steps) <= 2 or steps[-1].get("type") != "ByteLevel":
        return None
    *first, bytes_ = steps
    if bytes_.get("add_prefix_space", True):
        return None
    if bytes_.get("use_regex", True):
        return _gpt2_twin(None) if not first else _twin_after(first[0])
    if not first or not _isolates(first[0]):
        return None
    return _TWINS.get(first[0]["pattern"].get("Regex"))


def _twin_after(step: dict[str, Any]) -> Twin | None:
    """GPT-2's twin behind a step that cuts digits out."""
    if step.get("type") == "Digits" and step.get("individual_digits"):
        return _gpt2_twin(1)
    known = {_digits(most): most for most in (1, 3)}
    most = known.get(step["pattern"].get("Regex")) if _isolates(step) else None
    # `\p{N}` in a Split is a regular expression's digit, not Rust's; the cuts are the same.
    return Twin(_gpt2_twin(most).pattern, _USUAL) if most else None


def _isolates(step: dict[str, Any]) -> bool:
    return step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step["invert"]


def tiktoken_pattern(split: str, digits: int | None) -> str:
    """How tiktoken cuts text by a rule; `digits` None leaves numbers whole (GPT-2)."""
    if split == "gpt2":
        return _gpt2_twin(digits).pattern
    return _TWINS[_gpt4(digits or 1) if split == "gpt4" else _chinese(digits or 1)].pattern
