"""Tokens: random, compared in constant time, signed for one subject and a short time."""

from __future__ import annotations

import math
import re

import pytest

from app.guard.tokens import new_token, same, sign, verify

SECRET = b"k" * 32
NOW_S = 1_790_000_000.25


def test_new_tokens_are_long_url_safe_and_different() -> None:
    tokens = {new_token() for _ in range(200)}
    assert len(tokens) == 200
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{32}", token) for token in tokens)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        ("abc", "abc", True),
        ("abc", "abd", False),
        ("abc", "abcd", False),
        ("", "", True),
        ("schlüssel-鍵", "schlüssel-鍵", True),
        ("schlüssel", "schlussel", False),
        ("\udc80", "\udc80", True),  # what a decoder leaves of a broken header
    ],
)
def test_comparison(a: str, b: str, equal: bool) -> None:
    assert same(a, b) is equal


@pytest.mark.parametrize("subject", ["mjpeg/abc", "", "bild/грюß/絵", "line\nbreak", "\ud800"])
def test_a_signed_token_proves_its_subject_until_it_expires(subject: str) -> None:
    token = sign(SECRET, subject, 30, NOW_S)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", token)
    assert verify(SECRET, subject, token, NOW_S)
    assert verify(SECRET, subject, token, NOW_S + 29.9)
    assert not verify(SECRET, subject, token, NOW_S + 30)
    assert not verify(SECRET, subject, token, NOW_S + 3600)
    assert not verify(SECRET, subject + "x", token, NOW_S)
    assert not verify(b"other" * 8, subject, token, NOW_S)


def test_no_changed_character_passes() -> None:
    token = sign(SECRET, "mjpeg/abc", 30, NOW_S)
    for at, character in enumerate(token):
        for other in "0A_.é":
            if other != character:
                changed = token[:at] + other + token[at + 1 :]
                assert not verify(SECRET, "mjpeg/abc", changed, NOW_S), changed


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "abc", "١٢٣.x", "-1.x", "9" * 5000, "9" * 20 + ".x", "1e9.x", " 1.x", "\udc80.\udc80", "\0", "é.é"],
)
def test_garbage_is_refused_and_raises_nothing(token: str) -> None:
    assert not verify(SECRET, "mjpeg/abc", token, NOW_S)


def test_a_later_expiry_cannot_be_written_in() -> None:
    expiry, signature = sign(SECRET, "mjpeg/abc", 30, NOW_S).split(".")
    assert not verify(SECRET, "mjpeg/abc", f"{int(expiry) + 60_000}.{signature}", NOW_S)
    assert not verify(SECRET, "mjpeg/abc", f"0{expiry}.{signature}", NOW_S)


@pytest.mark.parametrize("ttl_s", [0, -1, math.nan])
def test_a_time_to_live_that_makes_no_sense(ttl_s: float) -> None:
    with pytest.raises(ValueError, match="ttl_s is"):
        sign(SECRET, "x", ttl_s, NOW_S)
