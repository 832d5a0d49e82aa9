"""A stream's WebSocket connection: sends with timeouts, rate and size limits for received messages, and closing.

Owns the limits of a connection. Depends on the protocol's messages, not on sessions.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, fields

from starlette.types import Message as Event
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.api.context import ApiLimits
from pipelines.core.errors import InputError

from .messages import CloseCode, ErrorMessage, Message, dump

_REASON_BYTES = 123  # RFC 6455, section 5.5: a control frame carries at most 125 bytes, two of them the code
_CLOSE_S = 1.0


class CloseConnection(Exception):  # noqa: N818  # not an error: ends the connection
    """Ends the connection. code: the close code to send; None if the peer is gone."""

    def __init__(self, code: CloseCode | None, reason: str = "") -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """Timeouts. hello_s: until the first message. send_s: to send a message. ack_s: until a frame is acknowledged.

    messages_per_s: sustained rate, with bursts of two seconds' worth. connections: in total; per_session: to one.
    waiting, waiting_per_address: connections without a hello, in total and of one address; of more, the newest stay.
    """

    hello_s: float = 10.0
    send_s: float = 10.0
    ack_s: float = 30.0
    messages_per_s: float = 400.0
    connections: int = 256
    per_session: int = 4
    waiting: int = 256
    waiting_per_address: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; give a number above 0")
        if self.waiting_per_address > self.waiting:
            raise ValueError(
                f"waiting_per_address is {self.waiting_per_address}; give at most waiting, which is {self.waiting}"
            )


class RateLimit:
    """A token bucket of 2 s worth of messages, refilled at the sustained rate."""

    def __init__(self, per_s: float, now_s: float) -> None:
        self._per_s = per_s
        self._tokens = 2 * per_s
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Count one message. Returns False if the rate is exceeded."""
        self._tokens = min(2 * self._per_s, self._tokens + (now_s - self._at_s) * self._per_s) - 1
        self._at_s = now_s
        return self._tokens >= 0


class Connection:
    """An accepted WebSocket. Every method but `close` raises CloseConnection if the connection must be closed or has
    ended."""

    def __init__(self, websocket: WebSocket, sizes: ApiLimits, limits: StreamLimits) -> None:
        self._websocket = websocket
        self._sizes = sizes
        self._limits = limits
        self._rate = RateLimit(limits.messages_per_s, time.monotonic())

    async def receive(self) -> str | bytes:
        """The next message. No timeout: the server's pings detect dead peers."""
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise CloseConnection(None)
        if not self._rate.take(time.monotonic()):
            raise CloseConnection(CloseCode.TOO_MANY, f"more than {self._limits.messages_per_s:g} messages a second")
        data, text = event.get("bytes"), event.get("text")
        maximum = self._sizes.message_bytes if data is not None else self._sizes.text_bytes
        message: str | bytes = data if data is not None else (text or "")
        if len(message) > maximum or (isinstance(message, str) and len(message.encode()) > maximum):
            raise CloseConnection(CloseCode.TOO_BIG, f"a message of more than {maximum} bytes")
        return message

    async def send(self, message: Message) -> None:
        """Send a text message."""
        await self._send({"type": "websocket.send", "text": dump(message)})

    async def send_bytes(self, message: bytes) -> None:
        """Send a binary message."""
        await self._send({"type": "websocket.send", "bytes": message})

    async def refuse(self, error: InputError) -> CloseConnection:
        """Report a protocol violation to the client. Returns the CloseConnection to raise."""
        await self.send(ErrorMessage(code="bad_message", message=error.message, remedy=error.remedy))
        return CloseConnection(CloseCode.POLICY, error.message)

    async def close(self, closing: CloseConnection) -> None:
        """Close with the given code, unless the peer is gone."""
        if closing.code is None:
            return
        reason = closing.reason.encode()[:_REASON_BYTES].decode(errors="ignore")
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._websocket.close(closing.code, reason)
        except (TimeoutError, WebSocketDisconnect, RuntimeError):
            return  # the peer disconnected in the meantime

    async def _send(self, event: Event) -> None:
        try:
            async with asyncio.timeout(self._limits.send_s):
                await self._websocket.send(event)
        except TimeoutError as error:  # the peer does not read
            raise CloseConnection(None) from error
        except (WebSocketDisconnect, RuntimeError) as error:  # RuntimeError: already closed by the server
            raise CloseConnection(None) from error
