"""HTTP on one connection: uvicorn's protocol over h11 with bounds on time, pieces and unread responses.

Owns these bounds. Independent of the application and of who may use it (app/guard/).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from .limits import Pieces, ServerLimits, UnreadWatch
from .lingering import LingeringTransport
from .listener import Arrival, Arrivals

_HEADER_BYTES = 16 << 10


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration, and the bounds of connections. message_bytes: of a WebSocket message after the first."""

    def __init__(self, app: Any, *, arrivals: Arrivals, message_bytes: int, **settings: Any) -> None:
        super().__init__(app, ws_max_size=message_bytes, **settings)
        self.arrivals = arrivals
        self.message_bytes = message_bytes


class BoundedRequest(h11.Connection):
    """Counts the pieces of each body. on_request: called when a request's header is whole."""

    def __init__(self, limits: ServerLimits) -> None:
        super().__init__(h11.SERVER, _HEADER_BYTES)
        self.on_request: Callable[[], None] = lambda: None
        self._pieces = Pieces(limits)

    def peer_sends(self) -> bool:
        """Whether the peer is in the middle of a request, or has sent something that is none."""
        return self.their_state in (h11.SEND_BODY, h11.ERROR)

    def next_event(self) -> Any:
        """As h11's. Raises h11.RemoteProtocolError for a body in too many pieces."""
        try:
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            error.__traceback__ = None  # one of its frames knows it: a circle that would hold the connection
            raise h11.RemoteProtocolError(str(error), error_status_hint=error.error_status_hint) from None
        if isinstance(event, h11.Request):
            self.on_request()
        elif isinstance(event, h11.Data) and not self._pieces.take(len(event.data)):
            raise h11.RemoteProtocolError("the body comes in too many pieces", error_status_hint=400)
        return event


class FrontHttp(H11Protocol):
    """uvicorn makes one for each connection; a WebSocket's handshake turns it into a FrontSocket."""

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        assert isinstance(config, BoundedConfig)
        self._arrivals = config.arrivals
        self._arrival: Arrival | None = None
        self._unread: UnreadWatch | None = None
        # Nothing here knows this protocol: a circle would stay until the next garbage collection, tens of KB each.
        self._request = self.conn = BoundedRequest(config.arrivals.limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin."""
        super().connection_made(cast("asyncio.Transport", LingeringTransport(transport, self._request.peer_sends)))
        arrival = self._arrival = self._arrivals.of(transport)
        unread = self._unread = UnreadWatch(transport, self._arrivals.limits)

        def requested() -> None:
            unread.then(None)
            arrival.settle()

        self._request.on_request = requested

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over."""
        assert isinstance(self.transport, LingeringTransport)
        self.transport = self.transport.real
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._unread is not None:
            self._unread.stop()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer has a buffer full to read."""
        super().pause_writing()
        if self._unread is not None:
            self._unread.begin()

    def resume_writing(self) -> None:
        """The peer has read it."""
        if self._unread is not None:
            self._unread.end()
        super().resume_writing()

    def on_response_complete(self) -> None:
        """The next request has its time from now on, which may have come already."""
        self._wait()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request, or too many pieces, in the API's shape; nothing more is read."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # in the middle of a response
            return
        remedy = "Send HTTP/1.1, and bodies in pieces of some hundred bytes or more."
        body = json.dumps({"error": {"code": "bad_input", "message": msg, "remedy": remedy}}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("cache-control", "no-store"),
            ("connection", "close"),
        ]
        response = h11.Response(status_code=400, headers=headers, reason=b"Bad Request")
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._wait()

    def _wait(self) -> None:
        """The time for the next request begins when the peer has read the response."""
        if self._arrival is not None and self._unread is not None:
            self._unread.then(self._arrival.wait)
