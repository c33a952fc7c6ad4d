"""Numbers that belong to a person, told from other numbers by their check digits and plan."""

from __future__ import annotations

import datetime
import ipaddress
import re

# Weights and check characters of GB 11643-1999.
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"
_PROVINCES = frozenset(
    "11 12 13 14 15 21 22 23 31 32 33 34 35 36 37 41 42 43 44 45 46 50 51 52 53 54 61 62 63 64 65 "
    "71 81 82".split()
)
# First digits of the card networks (ISO/IEC 7812), and the lengths that they give out.
_NETWORKS = re.compile(
    r"(?:4\d{12}(?:\d{3})?|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|3[47]\d{13}|3(?:0[0-5]|[68]\d)\d{11}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12}|35\d{14}|62\d{14,17})$"
)
# Characters of an account number by country.
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AT": 20, "BE": 16, "BG": 22, "CH": 21, "CY": 28, "CZ": 24, "DE": 22,
    "DK": 18, "EE": 20, "ES": 24, "FI": 18, "FR": 27, "GB": 22, "GI": 23, "GR": 27, "HR": 21,
    "HU": 28, "IE": 22, "IL": 23, "IS": 26, "IT": 27, "LI": 21, "LT": 20, "LU": 20, "LV": 21,
    "MC": 27, "MT": 31, "NL": 18, "NO": 15, "PL": 28, "PT": 25, "RO": 24, "SA": 24, "SE": 24,
    "SI": 19, "SK": 24, "TR": 26, "UA": 29,
}  # fmt: skip


def is_card(digits: str) -> bool:
    """Whether digits are a payment card's: of a network, and with the check digit of Luhn."""
    if not _NETWORKS.match(digits) or len(set(digits)) == 1:
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def is_chinese_identity(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number: province, birthday, check character."""
    if number[:2] not in _PROVINCES:
        return False
    try:
        born = datetime.date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, _WEIGHTS, strict=False))
    return born.year >= 1900 and number[17].upper() == _CHECKS[total % 11]


def is_iban(account: str) -> bool:
    """Whether letters and digits are an IBAN: its country's length, and 1 modulo 97 (ISO 13616)."""
    if _IBAN_LENGTHS.get(account[:2]) != len(account):
        return False
    return int("".join(str(int(each, 36)) for each in account[4:] + account[:4])) % 97 == 1


def is_public_address(address: str) -> bool:
    """Whether a text is an IP address that someone can be reached at.

    Private, reserved and documentation's addresses are nobody's; one of seven digits or fewer is
    more often a version, or a name server that all know.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    if not parsed.is_global or parsed.is_multicast:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        # Only 2000::/3 is given out; "dead::beef" and C++ are not in it.
        return parsed.packed[0] >> 5 == 1
    return len(address) > 10
