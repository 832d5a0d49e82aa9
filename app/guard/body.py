"""Size and time limits of request bodies, enforced while they stream: the rest of a refused body is not read.

Wraps `receive` and `send` of one request. Independent of the rules: the limits are parameters.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive, Send

from .answers import Refusal, answer_json


class BodyGate:
    """`receive` and `send` of one HTTP request. refused: a refusal was sent; the application's response is dropped.

    cap_bytes: of the whole body. declared_bytes: its Content-Length, 0 for none. has_body: an answer before the body's
    end closes the connection: the rest is not read. The total wait for a body is limited to `patience_s` + 1 s for each
    `bytes_per_s` received, a single wait to `patience_s`; the application's own time between two chunks does not count.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        *,
        cap_bytes: int,
        patience_s: float,
        bytes_per_s: float,
        declared_bytes: int = 0,
        has_body: bool = False,
    ) -> None:
        self._receive = receive
        self._send = send
        self._cap_bytes = cap_bytes
        self._declared_bytes = declared_bytes
        self._has_body = has_body
        self._patience_s = patience_s
        self._bytes_per_s = bytes_per_s
        self._received_bytes = 0
        self._waited_s = 0.0
        self._complete = False  # the whole body has arrived
        self._responding = False  # the application has started its response
        self.refused = False

    async def receive(self) -> Message:
        """The next chunk; http.disconnect once the request is refused."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self._complete:
            return await self._receive()
        if self._declared_bytes > self._cap_bytes:
            return await self.refuse(too_large(self._cap_bytes))
        begin_s = time.monotonic()
        allowed_s = self._patience_s + self._received_bytes / self._bytes_per_s - self._waited_s
        try:
            async with asyncio.timeout(min(self._patience_s, allowed_s)):
                message = await self._receive()
        except TimeoutError:
            return await self.refuse(_slow(self._patience_s))
        self._waited_s += time.monotonic() - begin_s
        if message["type"] != "http.request":
            return message
        self._received_bytes += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._received_bytes > self._cap_bytes:
            return await self.refuse(too_large(self._cap_bytes))
        return message

    async def send(self, message: Message) -> None:
        """Forward the application's response, unless the request was refused."""
        if self.refused:
            return
        self._responding = True
        if message["type"] == "http.response.start" and self._has_body and not self._complete:
            message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> Message:
        """Send the refusal, unless a response has started. Returns http.disconnect for the application."""
        self.refused = True
        if not self._responding:
            await answer_json(self._send, refusal)
        return {"type": "http.disconnect"}


def too_large(cap_bytes: int) -> Refusal:
    """413."""
    return Refusal(
        status=413,
        code="too_large",
        message=f"The body has more than {cap_bytes} bytes.",
        remedy="Send a smaller body.",
        hang_up=True,
    )


def _slow(patience_s: float) -> Refusal:
    return Refusal(
        status=408,
        code="bad_input",
        message=f"The body did not arrive within {patience_s:g} s.",
        remedy="Send it again over a faster connection.",
        hang_up=True,
    )
