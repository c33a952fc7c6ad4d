"""Personal data and secrets, replaced by what they are: `<EMAIL>`, `<PHONE>` ..."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fourstage.data.cleaning import identifiers
from fourstage.data.cleaning.verdict import KEPT, Verdict

KINDS = ("email", "phone", "ip_address", "credit_card", "iban", "id_number", "secret")
_CONTEXT = 40
# A word that says that a phone's number follows, and what may stand between.
_PHONE_WORD = re.compile(
    r"(?:\b(?:tel|telephone|phone|mobile|cell|fax|whatsapp|hotline|call|dial|text)\b|电话|電話|手机|手機|热线|"
    r"熱線|传真|傳真|微信|联系|聯繫|联系人|咨询|諮詢|致电|致電|拨打|撥打)"
    r"(?:\s*(?:us|me|now|today|number|no\.|at|on|is|方式|号码|號碼|号|为|是|[.:：,，(（+-]))*\s*$",
    re.IGNORECASE,
)
# What stands before a number that is of something else, and behind a sum or a count.
_OTHER_NUMBER = re.compile(
    r"(?:[\w.,=×*+/^$¥€£#%-]|\b(?:v|ver|version|release|build|isbn|issn|doi|pmid|section|id)\.?:? ?"
    r"|[=×*/^$¥€£] |版本号?：?|第|编号：?|订单号?：?)$",
    re.IGNORECASE | re.ASCII,
)
_COUNTED = re.compile(
    r"[.,]\d| ?(?:[%％=×*^/$€]|[元人年万萬亿億美个個次条份]|(?:bytes|bits|people|dollars|users)\b)"
)
_DATE = re.compile(r"(?:19|20)\d\d ?- ?(?:19|20)\d\d|\d{1,4}[.-]\d{1,2}[.-]\d{1,4}")
_HAN = re.compile("[\u4e00-\u9fff]")
_BETWEEN = re.compile(r"[ .()（）-]")
Match = re.Match[str]


def pii(text: str) -> Verdict:
    """Masks e-mail addresses, phone numbers, IP addresses, card and identity numbers, secrets.

    A number is masked where it is told from versions, dates and sums: by check digits, by the form
    that phone numbers have in a country, or by a word before it.
    """
    masked, counts = mask(text)
    return Verdict(text=masked, edits=counts) if counts else KEPT


def mask(text: str) -> tuple[str, dict[str, int]]:
    """The text with `<KIND>` in the place of each find, and how many there are of each kind."""
    counts: Counter[str] = Counter()
    for rule in _rules_for(text):

        def replaced(found: Match, rule: _Rule = rule) -> str:
            if not rule.holds(found):
                return found[0]
            counts[rule.kind] += 1
            # A secret's name stays, and so does what stands between it and the secret.
            return f"{found['name'] if rule.is_named else ''}<{rule.kind.upper()}>"

        text = rule.pattern.sub(replaced, text)
    return text, {kind: counts[kind] for kind in KINDS if counts[kind]}


def count_pii(text: str) -> dict[str, int]:
    """How many pieces of personal data a text holds, by kind; kinds that it lacks are left out."""
    return mask(text)[1]


def _compact(found: Match) -> str:
    return _BETWEEN.sub("", found[0])


def _before(found: Match) -> str:
    return found.string[max(0, found.start() - _CONTEXT) : found.start()]


def _stands_alone(found: Match) -> bool:
    """Whether a number is no sum, version, count or part of a longer one."""
    if _OTHER_NUMBER.search(_before(found)):
        return False
    return _COUNTED.match(found.string, found.end()) is None


def _is_named(found: Match) -> bool:
    return _PHONE_WORD.search(_before(found)) is not None


def _is_named_phone(found: Match) -> bool:
    digits = len(_compact(found).lstrip("+"))
    return 7 <= digits <= 15 and not _DATE.fullmatch(found[0]) and _is_named(found)


def _is_chinese_mobile(found: Match) -> bool:
    """Eleven digits may be anything; in Chinese text, standing alone, they are a phone's."""
    if _is_named(found):
        return True
    around = found.string[max(0, found.start() - _CONTEXT) : found.end() + _CONTEXT]
    return _stands_alone(found) and ("+86" in found[0] or _HAN.search(around) is not None)


def _is_address(found: Match) -> bool:
    return not _OTHER_NUMBER.search(_before(found)) and identifiers.is_public_address(found[0])


@dataclass(frozen=True)
class _Rule:
    """A pattern of a kind, and what must hold of a find and of what surrounds it.

    `is_named`: the pattern has a group "name" that stays.
    """

    kind: str
    pattern: re.Pattern[str]
    holds: Callable[[Match], bool] = lambda found: True
    is_named: bool = False


def _compiled(pattern: str) -> re.Pattern[str]:
    # ASCII: a Chinese character before a number or an address bounds it.
    return re.compile(pattern, re.ASCII)


_EDGE, _END = r"(?<![\w.+-])", r"(?![\w-]|\.\d)"
# Text without seven digits nearly in a row holds none of these.
_ANY_NUMBER = _compiled(r"\d(?:[ ().-]{0,2}\d){6}")
# In this order: a card holds what looks like a phone.
_NUMBERS = (
    _Rule(
        "id_number",
        _compiled(r"(?<!\w)\d{17}[\dXx](?!\w)"),
        lambda found: identifiers.is_chinese_identity(found[0]),
    ),
    _Rule(
        "credit_card",
        _compiled(rf"{_EDGE}\d(?:[ -]?\d){{12,18}}{_END}"),
        lambda found: identifiers.is_card(_compact(found)) and _stands_alone(found),
    ),
    _Rule(
        "iban",
        _compiled(r"\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"),
        lambda found: identifiers.is_iban(found[0].replace(" ", "")),
    ),
    # Social security numbers of the United States.
    _Rule(
        "id_number",
        _compiled(rf"{_EDGE}(?!000|666|9\d\d)\d{{3}}-(?!00)\d\d-(?!0000)\d{{4}}{_END}"),
        _stands_alone,
    ),
    _Rule(
        "ip_address",
        _compiled(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"),
        _is_address,
    ),
    _Rule(
        "phone",
        _compiled(r"(?<![\w.])(?:\+?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?!\w)"),
        _is_chinese_mobile,
    ),
    # Abroad; the ten digits of North America; China's lines and service numbers; Britain's.
    _Rule(
        "phone",
        _compiled(
            rf"{_EDGE}\+[1-9](?:[ .()-]{{0,2}}\d){{7,14}}{_END}"
            rf"|{_EDGE}(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{{4}}{_END}"
            rf"|{_EDGE}(?:[(（]0\d{{2,3}}[)）] ?|0\d{{2,3}}-)\d{{7,8}}{_END}"
            rf"|{_EDGE}[48]00-\d{{3,4}}-\d{{3,4}}{_END}|{_EDGE}0\d{{2,4}} \d{{3,4}} \d{{3,4}}{_END}"
        ),
        lambda found: _is_named(found) or _stands_alone(found),
    ),
    _Rule("phone", _compiled(r"(?<!\w)\+?\d[\d ().-]{5,18}\d(?!\w)"), _is_named_phone),
)
_EMAIL = _Rule(
    "email",
    _compiled(
        r"(?<![\w.+%-])[\w+%-][\w.+%-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.)+[A-Za-z]{2,24}(?![\w-])"
    ),
)
_ANY_IPV6 = _compiled(r":[0-9a-fA-F]{0,4}:[0-9a-fA-F]")
_IPV6 = _Rule(
    "ip_address",
    _compiled(r"(?<![\w:.])(?:[0-9a-fA-F]{0,4}:){2,7}[0-9a-fA-F]{1,4}(?![\w:.])"),
    _is_address,
)
# The forms that providers give out: Amazon, GitHub, GitLab, npm, Slack, Stripe, Google, Hugging
# Face, OpenAI and Anthropic, and JSON web tokens.
_SECRET = _Rule(
    "secret",
    _compiled(
        r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}\b|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}"
        r"|npm_[A-Za-z0-9]{36}|xox[abeprs]-[A-Za-z0-9-]{10,}|[srp]k_live_[A-Za-z0-9]{16,}|AIza[\w-]{35}"
        r"|hf_[A-Za-z]{30,}|sk-(?=[\w-]{0,99}\d)(?=[\w-]{0,99}[A-Z])[\w-]{24,}"
        r"|eyJ[\w-]{10,999}\.eyJ[\w-]{10,9999}\.[\w-]{10,999})"
    ),
)
_SECRET_SIGNS = (
    "AKIA ASIA ghp_ gho_ ghu_ ghs_ ghr_ github_pat_ glpat- npm_ xox k_live_ AIza hf_ sk- eyJ"
).split()
_PRIVATE_KEY = _Rule(
    "secret",
    _compiled(
        r"-----BEGIN (?:[A-Z]+ ){0,3}PRIVATE KEY-----(?:[\w\s+/=:,]|-(?!-)){0,9999}?"
        r"-----END (?:[A-Z]+ ){0,3}PRIVATE KEY-----"
    ),
)
_NAMED_SECRET = _Rule(
    "secret",
    _compiled(
        r"(?P<name>(?i:secret|secret_?access_?key|api_?key|access_?token|auth_?token|password|passwd)"
        r"[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(?=[\w+/-]{0,99}\d)(?=[\w+/-]{0,99}[A-Za-z])[\w+/-]{16,}=*"
    ),
    is_named=True,
)
_ANY_NAMED_SECRET = _compiled(r"[:=]\s{0,3}[\"']?[\w+/-]{16}")


def _rules_for(text: str) -> Iterator[_Rule]:
    """The rules that can find anything in the text, in the order in which they are to be tried."""
    if "PRIVATE KEY" in text:
        yield _PRIVATE_KEY
    if any(sign in text for sign in _SECRET_SIGNS):
        yield _SECRET
    if _ANY_NAMED_SECRET.search(text):
        yield _NAMED_SECRET
    if "@" in text:
        yield _EMAIL
    if _ANY_NUMBER.search(text):
        yield from _NUMBERS
    if _ANY_IPV6.search(text):
        yield _IPV6
