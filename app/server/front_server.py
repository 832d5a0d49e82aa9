"""The HTTP and WebSocket server of the front: uvicorn with bounded connections. Independent of the application."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import uvicorn

from .http_protocol import BoundedConfig, FrontHttp
from .limits import ServerLimits
from .listener import Arrivals, FrontListener
from .socket_protocol import FrontSocket


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
        with self._listener:
            self.server.run(sockets=[self._listener])

    async def serve(self) -> None:
        """The same on the running event loop."""
        with self._listener:
            await self.server.serve(sockets=[self._listener])
