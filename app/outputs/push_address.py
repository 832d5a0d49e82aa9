"""Addresses of streaming services: checked, and never shown in full, since their paths and queries hold the keys.

Independent of the network.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from pipelines.core.errors import InputError

_HIDDEN = "…"
_BRACKETS = re.compile(r"[^\[\]]*|\[[^\[\]]+\](:\d*)?")  # none, or one pair around the whole host
_MIN_SECRET_CHARACTERS = 3  # hiding shorter pieces would only garble messages


@dataclass(frozen=True, slots=True, kw_only=True)
class PushAddress:
    """url is a secret: it stays out of repr, messages and logs. shown: the public part, scheme://host:port/…"""

    url: str = field(repr=False)
    scheme: str
    shown: str
    secrets: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(cls, url: str, schemes: tuple[str, ...]) -> PushAddress:
        """Raises InputError, without the address in its message."""
        wanted = f"Give {' or '.join(f'{scheme}://HOST/...' for scheme in schemes)}."
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise InputError("The address to push to is not a URL.", wanted) from error
        brackets = _BRACKETS.fullmatch(parts.netloc.rpartition("@")[2])
        if (
            parts.scheme not in schemes
            or not host
            or brackets is None
            or any(ord(letter) <= 32 for letter in url.strip())
        ):
            raise InputError("The address to push to cannot be used.", wanted)
        if ":" in host:
            host = f"[{host}]"
        shown = f"{parts.scheme}://{host}{f':{port}' if port else ''}/{_HIDDEN}"
        return cls(url=url.strip(), scheme=parts.scheme, shown=shown, secrets=_secrets(url.strip()))

    def hide(self, text: str) -> str:
        """`text` with all secrets of the address masked."""
        text = text.replace(self.url, self.shown)
        for secret in self.secrets:
            text = text.replace(secret, _HIDDEN)
        return text


def _secrets(url: str) -> tuple[str, ...]:
    """Everything but scheme, host and port, whole and in pieces, the longest first."""
    parts = urlsplit(url)
    pieces = [parts.path.strip("/"), parts.query, parts.fragment, parts.username or "", parts.password or ""]
    pieces += parts.path.split("/")
    pieces += [value for _, value in parse_qsl(parts.query)]
    pieces += re.split(r"[=&:,#!/@]+", url.split(parts.netloc, 1)[1])
    pieces += [unquote(piece) for piece in pieces]
    return tuple(sorted({p for p in pieces if len(p) >= _MIN_SECRET_CHARACTERS}, key=len, reverse=True))
