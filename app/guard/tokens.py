"""Tokens: generation, constant-time comparison, and short-lived signed tokens for URLs.

Pure functions, independent of HTTP, sessions and clocks: the caller passes the time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

TOKEN_BYTES = 24

_PURPOSE = b"zoetrope signed address, version 1"
_MAX = 128  # characters of a signed token; longer ones are rejected
_MS_DIGITS = 15


def new_token() -> str:
    """192 random bits as 32 URL-safe characters."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def same(a: str, b: str) -> bool:
    """Whether two tokens are equal, compared in constant time. Accepts any text."""
    return hmac.compare_digest(_octets(a), _octets(b))


def sign(secret: bytes, subject: str, ttl_s: float, now_s: float) -> str:
    """A URL-safe token for `subject` (the permitted action and its object), valid until now_s + ttl_s.

    "<expiry in ms>.<HMAC-SHA256 (RFC 2104) of purpose, expiry and subject, base64url>", without the subject.
    now_s: any clock, the same for both calls. Raises ValueError unless ttl_s > 0.
    """
    if not ttl_s > 0:
        raise ValueError(f"ttl_s is {ttl_s}; give seconds above 0")
    expiry = str(round((now_s + ttl_s) * 1000))
    return f"{expiry}.{_signature(secret, expiry, subject)}"


def verify(secret: bytes, subject: str, token: str, now_s: float) -> bool:
    """Whether `token` was signed with this secret for this subject and has not expired. Never raises."""
    if len(token) > _MAX:
        return False
    expiry, _, signature = token.partition(".")
    genuine = same(signature, _signature(secret, expiry, subject))
    in_time = expiry.isascii() and expiry.isdigit() and len(expiry) <= _MS_DIGITS and now_s * 1000 < int(expiry)
    return genuine and in_time


def _signature(secret: bytes, expiry: str, subject: str) -> str:
    message = b"\0".join((_PURPOSE, _octets(expiry), _octets(subject)))
    digest = hmac.digest(secret, message, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def _octets(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
