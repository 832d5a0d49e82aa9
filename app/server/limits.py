"""Limits of what a connection may make the server do, below HTTP requests and WebSocket messages.

Owns the numbers, the count of pieces and the watch on peers that do not read. Independent of the application.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Of every connection, whoever made it.

    connections: in total; fewer where the process may not open twice as many files. per_address: share of one address,
    0..1. request_s: for the TLS handshake and a request's whole header, from the connection or the last response on.
    unread_s, bytes_per_s: a peer that takes less than so many bytes a second for so long of what waits for it is cut
    off. pieces: frames of a WebSocket, or chunks of a body, at once; afterwards pieces_per_s, and one more for each
    piece_bytes of data. first_bytes: of a WebSocket's first message, by which its sender shows who it is. unsent_bytes:
    that the system takes before a peer has room for them: more would be work for one that does not read, and age.
    """

    connections: int = 1024
    per_address: float = 0.75
    request_s: float = 10.0
    unread_s: float = 30.0
    bytes_per_s: float = 4096.0
    pieces: int = 1024
    pieces_per_s: float = 800.0
    piece_bytes: int = 512
    first_bytes: int = 64 << 10
    unsent_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for name in ("connections", "request_s", "unread_s", "bytes_per_s", "pieces", "pieces_per_s", "piece_bytes"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        if not 0 < self.per_address <= 1:
            raise ValueError(f"per_address is {self.per_address}; give a share above 0, up to 1")


class Pieces:
    """Counts the pieces in which data arrives: each costs about as much work as some hundred bytes."""

    def __init__(self, limits: ServerLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._left = float(limits.pieces)
        self._at_s = clock()

    def take(self, size_bytes: int) -> bool:
        """Count one piece with so much data. False: there were too many for their data and time."""
        now_s = self._clock()
        earned = (now_s - self._at_s) * self._limits.pieces_per_s + size_bytes / self._limits.piece_bytes
        self._at_s = now_s
        self._left = min(float(self._limits.pieces), self._left + earned) - 1
        return self._left >= 0


class UnreadWatch:
    """Cuts off a peer that does not read, while more waits for it than the transport wants to keep."""

    def __init__(self, transport: asyncio.Transport, limits: ServerLimits) -> None:
        self._transport = transport
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._then: Callable[[], None] | None = None

    @property
    def waiting(self) -> bool:
        """Whether the peer has much to read before it should get more."""
        return self._timer is not None

    def begin(self) -> None:
        """The transport's buffer is full (pause_writing)."""
        self._stop_timer()
        size = self._transport.get_write_buffer_size()
        self._timer = asyncio.get_running_loop().call_later(self._limits.unread_s, self._check, size)

    def end(self) -> None:
        """The peer has read enough (resume_writing)."""
        self._stop_timer()
        then, self._then = self._then, None
        if then is not None:
            then()

    def then(self, action: Callable[[], None] | None) -> None:
        """Call `action` once, when the peer has read enough, which may be now; instead of an earlier one."""
        self._then = action
        if self._timer is None:
            self.end()

    def stop(self) -> None:
        """The peer is gone."""
        self._stop_timer()
        self._then = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, before_bytes: int) -> None:
        read_bytes = before_bytes - self._transport.get_write_buffer_size()
        if read_bytes < self._limits.unread_s * self._limits.bytes_per_s:
            self._transport.abort()
        else:
            self.begin()
