"""The HTTP and WebSocket server of the front: uvicorn with bounded connections. Independent of the application."""

from __future__ import annotations

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
        self.server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until a signal, or until `server.should_exit`."""
        with self._listener, _seldom():
            self.server.run(sockets=[self._listener])

    async def serve(self) -> None:
        """The same on the running event loop."""
        with self._listener, _seldom():
            await self.server.serve(sockets=[self._listener])
