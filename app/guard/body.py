"""Bodies of requests, counted and timed while they stream: too large or too slow is refused without reading more.

Stands between the server and the application for one request. Knows no rule: it is given the numbers.
"""

from __future__ import annotations

import asyncio
import time

from starlette.types import Message, Receive, Send

from .answers import Refusal, answer_json


class BodyGate:
    """`receive` and `send` of one HTTP request. refused: an answer has been given; the application's is dropped.

    cap_bytes: of the whole body. A body may keep us waiting `patience_s` + 1 s for each `bytes_per_s` received, and
    never `patience_s` at a stretch; the time that the application takes between two pieces does not count.
    """

    def __init__(self, receive: Receive, send: Send, *, cap_bytes: int, patience_s: float, bytes_per_s: float) -> None:
        self._receive = receive
        self._send = send
        self._cap_bytes = cap_bytes
        self._patience_s = patience_s
        self._bytes_per_s = bytes_per_s
        self._received_bytes = 0
        self._waited_s = 0.0
        self._whole = False  # the body is all here
        self._answering = False  # the application has begun to answer
        self.refused = False

    async def receive(self) -> Message:
        """The next piece; a disconnect, as if the client had gone, once the request is refused."""
        if self.refused:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
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
        self._whole = not message.get("more_body", False)
        if self._received_bytes > self._cap_bytes:
            return await self.refuse(too_large(self._cap_bytes))
        return message

    async def send(self, message: Message) -> None:
        """Pass the application's answer on, unless the request has been refused."""
        if self.refused:
            return
        self._answering = True
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> Message:
        """Answer now, if the application has not begun to. Returns the disconnect that it shall see."""
        self.refused = True
        if not self._answering:
            await answer_json(self._send, refusal)
        return {"type": "http.disconnect"}


def too_large(cap_bytes: int) -> Refusal:
    """413."""
    return Refusal(
        status=413,
        code="too_large",
        message=f"The body has more than {cap_bytes} bytes.",
        remedy="Send less.",
        hang_up=True,
    )


def _slow(patience_s: float) -> Refusal:
    return Refusal(
        status=408,
        code="bad_input",
        message=f"The body did not come within {patience_s:g} s.",
        remedy="Send it again over a faster connection.",
        hang_up=True,
    )
