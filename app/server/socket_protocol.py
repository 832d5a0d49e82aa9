"""A WebSocket on one connection: uvicorn's protocol over websockets, bounded in what it reads, keeps and answers.

Owns the bounds on frames (pings, pongs, fragments, messages), on the first message and on what is not read.
Independent of what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio.transports import BaseTransport
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.exceptions import ProtocolError
from websockets.frames import CloseCode, Frame, Opcode
from websockets.server import ServerProtocol

from .http_protocol import BoundedConfig
from .limits import Pieces, ServerLimits, UnreadWatch
from .listener import Arrival

TOO_MANY_FRAMES = 4429
"""Close code: more frames than their data and time allow (docs/api.md)."""


_DRAIN_S = 2.0


class BoundedFrames(ServerProtocol):
    """Counts frames as they are parsed. unread: while the peer leaves much unread, pings get no pong."""

    def __init__(self, limits: ServerLimits, message_bytes: int) -> None:
        super().__init__(
            extensions=[], max_size=min(limits.first_bytes, message_bytes), logger=logging.getLogger("uvicorn.error")
        )
        self.heard = False  # a whole message has come
        self._pieces = Pieces(limits)
        self._message_bytes = message_bytes
        self.unread: UnreadWatch | None = None

    def recv_frame(self, frame: Frame) -> None:
        """One frame. Raises ProtocolError: there are too many; the connection is failed."""
        if not self._pieces.take(len(frame.data)):
            text = "too many frames for their data"
            self.fail(TOO_MANY_FRAMES, text)
            raise ProtocolError(text)
        if frame.opcode is Opcode.PING and self.unread is not None and self.unread.waiting:
            return  # RFC 6455, section 5.5.3: only the latest of several pings needs a pong
        super().recv_frame(frame)
        if frame.fin and frame.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            self.heard = True
            self.max_message_size = self._message_bytes


class FrontSocket(WebSocketsSansIOProtocol):
    """uvicorn makes one for each handshake that a FrontHttp has received."""

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
        self._frames = self.conn = BoundedFrames(config.arrivals.limits, config.message_bytes)

    def connection_made(self, transport: BaseTransport) -> None:
        """Begin."""
        super().connection_made(transport)
        self._arrival = self._arrivals.of(transport)
        self._unread = self._frames.unread = UnreadWatch(self.transport, self._arrivals.limits)

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        if self._unread is not None:
            self._unread.stop()
        super().connection_lost(exc)
        self.conn.parser.close()  # it knows this connection, and would until the next garbage collection

    def send_receive_event_to_app(self) -> None:
        """A whole message has arrived. Text that is no UTF-8 fails the connection, and is no fault to be logged."""
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self.frames = []
            self.conn.fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

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

    def handle_parser_exception(self) -> None:
        """Fail the connection; what the peer still sends is thrown away for a while, so that it can read why."""
        self.conn.events_received()  # what came before it, thousands of frames perhaps, is not wanted any more
        if self.conn.parser_exc is not None:
            self.conn.parser_exc = self.conn.parser_exc.with_traceback(None)  # which knows this connection
        if self.close_sent:
            return  # more of it
        self.close_timer = self.loop.call_later(_DRAIN_S, self.transport.close)
        closing = self.conn.close_sent
        assert closing is not None
        self.queue.put_nowait({"type": "websocket.disconnect", "code": closing.code, "reason": closing.reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application is done: the rest that the peer has not read within the time for a request is thrown away."""
        super().on_task_complete(task)
        if self._arrival is not None and self._unread is not None and not self.disconnected:
            self._unread.then(self._arrival.wait)

    async def send(self, message: Any) -> None:
        """As uvicorn's; who has said nothing is not waited for when the connection is closed."""
        if message["type"] == "websocket.close" and not self._frames.heard:
            self.close_timeout = 0.0
        await super().send(message)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
