"""Closing a connection whose peer is still sending, so that it can read the answer.

A socket that is closed with unread input is reset, and a reset may overtake the answer (RFC 9112, section 9.6): the
sending side is closed first, and what arrives meanwhile is thrown away. Independent of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

_LINGER_S = 2.0
_LINGER_BYTES = 64 << 20


class LingeringTransport:
    """A transport with another `close`. sending: whether the peer is in the middle of something when it is closed."""

    def __init__(self, transport: asyncio.Transport, sending: Callable[[], bool]) -> None:
        self.real = transport
        self._sending = sending
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def is_closing(self) -> bool:
        """Whether it is closed or lingers."""
        return self._lingers or self.real.is_closing()

    def close(self) -> None:
        """Close it, at once or when the peer has closed its side."""
        if self.is_closing():
            return
        if not self._sending():
            self.real.close()
            return
        self._lingers = True
        self.real.set_protocol(_Discard(self.real, self.real.get_protocol()))
        if self.real.can_write_eof():
            self.real.write_eof()
        self.real.resume_reading()


class _Discard(asyncio.Protocol):
    """Throws away what a peer still sends, for a while. after: the protocol that has closed the connection."""

    def __init__(self, transport: asyncio.Transport, after: Any) -> None:
        self._transport = transport
        self._after = after
        self._left_bytes = _LINGER_BYTES
        self._timer = asyncio.get_running_loop().call_later(_LINGER_S, transport.close)

    def data_received(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes < 0:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._after.pause_writing()

    def resume_writing(self) -> None:
        self._after.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._after.connection_lost(exc)
