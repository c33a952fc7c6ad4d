"""Personal data is masked, and numbers that are none are not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourstage.data.cleaning import Cleaner, count_pii
from fourstage.data.cleaning.pii import mask


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to bob.smith+x@mail.example.co.uk now", "write to <EMAIL> now"),
        ("邮箱foo@example.com，欢迎来信", "邮箱<EMAIL>，欢迎来信"),
        ("call 780-800-7092 or (212) 555-0199", "call <PHONE> or <PHONE>"),
        ("+44 20 7946 0958", "<PHONE>"),
        ("1-800-555-1234, or 910.538.0115.", "<PHONE>, or <PHONE>."),
        ("Tel: 01 23 45 67 89", "Tel: <PHONE>"),
        ("电话13812345678", "电话<PHONE>"),
        ("联系人：李先生 138-1234-5678", "联系人：李先生 <PHONE>"),
        ("请拨打 010-62751234 或 400-810-5678", "请拨打 <PHONE> 或 <PHONE>"),
        ("身份证11010519491231002X。", "身份证<ID_NUMBER>。"),
        ("card 4111 1111 1111 1111", "card <CREDIT_CARD>"),
        ("pay to GB82 WEST 1234 5698 7654 32", "pay to <IBAN>"),
        ("SSN 536-22-8726", "SSN <ID_NUMBER>"),
        ("from 52.14.201.33 port 22", "from <IP_ADDRESS> port 22"),
        ("from 2a00:1450:4001:81b::200e", "from <IP_ADDRESS>"),
        ("AKIAIOSFODNN7EXAMPLE", "<SECRET>"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "aws_secret_access_key = <SECRET>",
        ),
        ("ghp_abcdefghijklmnopqrstuvwxyz0123456789", "<SECRET>"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIB\n-----END RSA PRIVATE KEY-----", "<SECRET>"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(text, masked):
    assert mask(text)[0] == masked


@pytest.mark.parametrize(
    "text",
    [
        "version 1.2.3.4, build 91.0.4472.124, v52.14.201.33, 10.0.0.1, 192.168.1.1, 203.0.113.77",
        "2010-2015, 2024-01-15 10:30:45, 12.05.2010, 1/2/2003",
        "3.14159265358979, 1,234,567.89, $415 555 2671.00, 2^34 = 17179869184 bytes",
        "总和是13800000000元，人口1390000000人，编号：13812345678",
        "ISBN 978-0-306-40615-7, 978-3-16-148410-0",
        "4111 1111 1111 1112 fails Luhn, 110105194912310021 its check digit",
        "std::vector dead::beef a::b 12:30:45 @dataclass foo@bar",
        "call 2019-2020 the years of change",
        "GB82 WEST 1234 5698 7654 33",
        "password: correct horse battery staple",
    ],
)
def test_versions_dates_and_sums_are_no_personal_data(text):
    assert mask(text) == (text, {})


def test_finds_are_counted_by_kind():
    text = "a@example.org b@example.org 212-555-0199"
    assert count_pii(text) == {"email": 2, "phone": 1}
    assert dict(Cleaner(["pii"])(text).edits) == {"pii.email": 2, "pii.phone": 1}


@given(st.text(alphabet=st.sampled_from("0123456789 -.()+@:aXé号"), max_size=200))
def test_no_text_makes_masking_fail_or_lose_more_than_it_counts(text):
    masked, counts = mask(text)
    assert (masked == text) == (not counts)
    assert masked.count("<") == sum(counts.values())
