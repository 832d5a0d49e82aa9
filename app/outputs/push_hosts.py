"""Which hosts clients may have this server push to: the server must not be a way into the network behind it.

Compares names as written; resolves nothing. Independent of sessions and transports.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from app.guard.rules import host_pair
from pipelines.core.errors import InputError

ANY = "*"
_PORTS: Mapping[str, int] = MappingProxyType({"rtmp": 1935, "rtmps": 443, "http": 80, "https": 443, "srt": 0})
# Only plain names and ports: anything that urllib and the connecting libraries could parse differently is refused.
_NETLOC = re.compile(r"(?:[\w.~%!$&'()*+,;=:-]*@)?([^@]+)", re.ASCII)
_LISTENS = re.compile(r"[?&]mode=(?!caller(?:[&#]|$))", re.IGNORECASE)


class PushHostError(InputError):
    """A client named a host that this server does not push to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHosts:
    """any_host: every host is allowed. pairs: allowed (name, port), names in lower case; port None: any port."""

    any_host: bool = False
    pairs: frozenset[tuple[str, int | None]] = frozenset()

    @classmethod
    def of(cls, names: Sequence[str], *, private: bool) -> PushHosts:
        """names: HOST, HOST:PORT or *. private: only this machine can connect and no token is required; then an empty
        list means any host, else none. Raises InputError."""
        if not names:
            return cls(any_host=private)
        if ANY in names:
            return cls(any_host=True)
        return cls(pairs=frozenset(_pair(name) for name in names))

    def check(self, url: str) -> None:
        """Raise PushHostError, without the address's key, unless `url` may be pushed to."""
        if _LISTENS.search(url):
            raise PushHostError("A push needs SRT caller mode, not listener or rendezvous.", "Omit mode.")
        if self.any_host:
            return
        pair = _host_of(url)
        if pair is None:
            raise PushHostError("The address to push to has no plain host name.", "Give SCHEME://HOST:PORT/...")
        if pair not in self.pairs and (pair[0], None) not in self.pairs:
            raise PushHostError(
                f"This server does not push to {pair[0]}.",
                "Its operator can allow that: zoetrope live --push-host HOST.",
            )


def _host_of(url: str) -> tuple[str, int] | None:
    """(name, port) of an address; None if it is none, or not a plain one."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    found = _NETLOC.fullmatch(parts.netloc)
    return host_pair(found[1], _PORTS.get(parts.scheme, 0)) if found is not None else None


def _pair(text: str) -> tuple[str, int | None]:
    pair = host_pair(text.strip(), 0)
    if pair is None:
        raise InputError(f"--push-host {text!r} is not a host.", "Give HOST, HOST:PORT or *, without rtmp://.")
    return pair[0], pair[1] or None
