"""The listening socket: bounds the connections in total and by address, from before the TLS handshake on.

Owns the places of connections and the time that each has for its next request. Knows neither HTTP nor the application;
the protocols (http_protocol.py, socket_protocol.py) say when a request has come and when it was answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import sys
import time
from typing import Any

from app.guard.places import Place, Places
from app.guard.rules import client_key

from .limits import ServerLimits

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_AT_ONCE = 64  # connections refused in one turn of the event loop
_LOG_EVERY_S = 60.0
_log = logging.getLogger(__name__)


class Arrival(socket.socket):
    """An accepted connection. It holds a place until it is closed, and waits in it while it has no request."""

    def __init__(self, accepted: socket.socket, arrivals: Arrivals, peer: object) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        unsent = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # Windows has none
        if unsent is not None:
            self.setsockopt(socket.IPPROTO_TCP, unsent, arrivals.limits.unsent_bytes)
        self._arrivals = arrivals
        self._peer = peer
        self._timer: asyncio.TimerHandle | None = None
        self.place: Place | None = None

    def settle(self) -> None:
        """A whole request header has come: what follows has limits of its own."""
        self._stop_timer()
        if self.place is not None:
            self.place.settle()

    def wait(self) -> None:
        """From now on it has `request_s` for its next request; then it is ended."""
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(self._arrivals.limits.request_s, self.end)
        if self.place is not None:
            self.place.wait()

    def end(self) -> None:
        """End the connection; the transport sees its end and closes."""
        with contextlib.suppress(OSError):  # already gone
            self.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it and free its place."""
        super().close()
        self._stop_timer()
        if self.place is not None:
            self.place.leave()
            self.place = None  # it knows this: a circle would stay until the next garbage collection
        self._arrivals.forget(self._peer, self)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Arrivals:
    """All accepted connections."""

    def __init__(self, limits: ServerLimits) -> None:
        self.limits = limits
        total = max(4, min(limits.connections, _files() // 2))
        self.places = Places(total=total, per_address=max(1, round(total * limits.per_address)))
        self._by_peer: dict[object, Arrival] = {}
        self._logged_s = -_LOG_EVERY_S

    def admit(self, accepted: socket.socket, peer: Any) -> Arrival | None:
        """The connection with a place; None if there is none: then it is closed."""
        arrival = Arrival(accepted, self, peer)
        arrival.place = self.places.take(client_key(peer[0]), arrival.end)
        if arrival.place is None:
            self.complain("All places of connections are taken by requests; further ones are refused.")
            arrival.end()
            arrival.close()
            return None
        self._by_peer[peer] = arrival
        arrival.wait()
        return arrival

    @property
    def connections(self) -> tuple[Arrival, ...]:
        """Those that are open."""
        return tuple(self._by_peer.values())

    def of(self, transport: asyncio.BaseTransport) -> Arrival:
        """The connection of a transport that was accepted here."""
        return self._by_peer[transport.get_extra_info("peername")]

    def forget(self, peer: object, arrival: Arrival) -> None:
        """It was closed; the same peer may have come again in the meantime."""
        if self._by_peer.get(peer) is arrival:
            del self._by_peer[peer]

    def complain(self, text: str) -> None:
        """Log it, but not more than once a minute: who makes it happen could fill the disk."""
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            _log.warning("%s", text)


def _files() -> int:
    """How many files the process may have open."""
    if sys.platform == "win32":
        return 1 << 20
    import resource

    soft: int = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return soft if soft != resource.RLIM_INFINITY else 1 << 20


class FrontListener(socket.socket):
    """A listening socket that gives places to what it accepts. Takes over `listening`."""

    def __init__(self, listening: socket.socket, arrivals: Arrivals) -> None:
        super().__init__(listening.family, listening.type, listening.proto, fileno=listening.detach())
        self._arrivals = arrivals
        self._spare: int | None = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that has a place. Raises BlockingIOError where there is none now."""
        for _ in range(_AT_ONCE):
            try:
                accepted, peer = super().accept()
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    raise
                self._turn_away()
                continue
            arrival = self._arrivals.admit(accepted, peer)
            if arrival is not None:
                return arrival, peer
        raise BlockingIOError

    def close(self) -> None:
        """Close it."""
        super().close()
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _turn_away(self) -> None:
        """Out of descriptors: close who has waited the longest, and with the spare one who is first at the door, who
        would otherwise wake the event loop for ever."""
        self._arrivals.complain("No more files can be opened: connections are refused. Raise the limit (ulimit -n).")
        self._arrivals.places.displace()
        if self._spare is None:
            raise BlockingIOError
        os.close(self._spare)
        self._spare = None
        try:
            super().accept()[0].close()
        except OSError as error:
            raise BlockingIOError from error
        finally:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY)
