"""The HTTP and WebSocket server of the front: uvicorn with bounded connections. Independent of the application."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from .http_protocol import BoundedConfig, FrontHttp
from .limits import ServerLimits
from .listener import Arrivals, FrontListener
from .socket_protocol import FrontSocket

_AGAIN_S = 60.0
_PACE_S = 0.002  # between newcomers
_BACKLOG = 2048


class _Seldom(logging.Filter):
    """Passes each warning once a minute: what clients send wrongly must not fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._last_s: dict[object, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        now_s = time.monotonic()
        if now_s - self._last_s.get(record.msg, -_AGAIN_S) < _AGAIN_S:
            return False
        self._last_s = {msg: at_s for msg, at_s in self._last_s.items() if now_s - at_s < _AGAIN_S}
        self._last_s[record.msg] = now_s
        return True


@contextmanager
def _seldom() -> Iterator[None]:
    log, seldom = logging.getLogger("uvicorn.error"), _Seldom()
    log.addFilter(seldom)
    try:
        yield
    finally:
        log.removeFilter(seldom)


class _PacedServer(uvicorn.Server):
    """uvicorn's server, but a crowd of newcomers is taken one by one, with a pause after each: those who are already
    there wait for one handshake, not for all. Its sockets are FrontListeners."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start the application, then take connections."""
        await super().startup(sockets=[])
        for listener in sockets or []:
            listener.listen(_BACKLOG)
            listener.setblocking(False)
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or []]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and end those that are there."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop, beginning = asyncio.get_running_loop(), set[asyncio.Task[None]]()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listener)
            except OSError:  # of the newcomer, which has gone again, or of its network
                await asyncio.sleep(_PACE_S)
                continue
            task = loop.create_task(self._begin(accepted))
            beginning.add(task)
            task.add_done_callback(beginning.discard)
            await asyncio.sleep(_PACE_S)

    async def _begin(self, accepted: socket.socket) -> None:
        """The TLS handshake, if any; the connection's protocol does the rest."""
        config = self.config

        def protocol() -> asyncio.Protocol:
            return config.http_protocol_class(config, self.server_state, self.lifespan.state)  # type: ignore[call-arg]

        with contextlib.suppress(OSError):  # ssl's errors too: a failed handshake is the peer's affair
            await asyncio.get_running_loop().connect_accepted_socket(protocol, accepted, ssl=config.ssl)


class FrontServer:
    """A server on one listening socket, which it takes over. server: uvicorn's, which says when it has started.

    message_bytes: of a WebSocket message. settings: further ones of uvicorn.Config.
    """

    def __init__(
        self,
        app: Any,
        listening: socket.socket,
        *,
        message_bytes: int = 4 << 20,
        limits: ServerLimits | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        **settings: Any,
    ) -> None:
        self.arrivals = Arrivals(limits or ServerLimits())
        config = BoundedConfig(
            app,
            arrivals=self.arrivals,
            message_bytes=message_bytes,
            http=FrontHttp,
            ws=FrontSocket,
            ws_per_message_deflate=False,
            proxy_headers=False,  # the guard limits by address, which a header must not override
            ssl_certfile=cert,
            ssl_keyfile=key,
            **settings,
        )
        self._listener = FrontListener(listening, self.arrivals)
        self.server: uvicorn.Server = _PacedServer(config)

    def run(self) -> None:
        """Serve until a signal, or until `server.should_exit`."""
        with self._listener, _seldom():
            self.server.run(sockets=[self._listener])

    async def serve(self) -> None:
        """The same on the running event loop."""
        with self._listener, _seldom():
            await self.server.serve(sockets=[self._listener])
