"""The client's side of a frame stream: sends pictures and changes, receives frames, reconnects after a lost connection.

Nothing queues: the newest frame wins, and at most 2 pictures wait to be taken. Used from one event loop.
client.py opens and closes the session.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from app.api.pictures import pack, unpack
from app.api.schema import SessionOpened
from app.api.stream.messages import (
    Ack,
    Applied,
    CloseCode,
    ControlMessage,
    Ended,
    ErrorMessage,
    Hello,
    Message,
    Notice,
    Ready,
    SourceMessage,
    Stats,
    Taken,
    dump,
    parse_server,
)
from app.api.stream.wire import HEADER_BYTES, Header, PictureFormat, pack_header, parse_header
from pipelines.core.errors import InputError, ZoetropeError
from pipelines.core.types import Picture

from .errors import UnreachableError, server_error

MAX_WAITING = 2
_WAITING_S = 0.5  # after this, a picture counts as lost
_REPLY_S = 10.0
_MAX_PX = 4096 * 4096
_MAX_BYTES = 64 << 20
_RETRY_S = (0.1, 0.2, 0.5, 1.0)
_FINAL = {
    CloseCode.SHUTDOWN: "worker",
    CloseCode.POLICY: "bad_input",
    CloseCode.TOO_BIG: "too_large",
    CloseCode.WRONG_TOKEN: "unauthorised",
    CloseCode.FOREIGN_ORIGIN: "unauthorised",
    CloseCode.UNKNOWN_SESSION: "unknown_session",
    CloseCode.TOO_MANY: "bad_input",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamFrame:
    """A finished frame. image: [H, W, 3] uint8 RGB. number: of the session's frames; gaps are frames not sent.

    source_seq: what `send` returned for its input; None: from the prompt alone. latency_ms: from `send` to arrival.
    server_ms: the part of it spent in the server.
    """

    image: Picture
    number: int
    source_seq: int | None
    latency_ms: float | None
    server_ms: float


class ClientStream:
    """Created by ZoetropeClient.stream. Iterates over frames until it is closed; raises the error that ended it."""

    def __init__(
        self,
        session: SessionOpened,
        address: str,
        *,
        headers: dict[str, str],
        picture_format: Literal["jpeg", "webp", "rgb"],
        quality: int,
    ) -> None:
        self.session = session
        self.reconnects = 0
        self.missed = 0  # received frames that newer ones replaced before they were taken
        self.ready: Ready | None = None
        self.stats: Stats | None = None
        self.notice = ""
        self._address = address
        self._headers = headers
        self._format = PictureFormat[picture_format.upper()]
        self._quality = quality
        self._hello = Hello(token=session.token, format=picture_format, quality=quality)
        self._changed = asyncio.Condition()
        self._socket: ClientConnection | None = None  # set while the stream is open on it
        self._newest: StreamFrame | None = None
        self._newest_source: int | None = None  # the input that the newest frame was made from
        self._lost = False  # a connection, with what was in flight on it
        self._waiting: dict[int, float] = {}  # seq: time sent, in ms of the monotonic clock
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Future[None]] = {}
        self._error: ZoetropeError | None = None
        self._over = False
        self._task: asyncio.Task[None] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px of the frames."""
        assert self.ready is not None, "the stream is not open yet"
        return self.ready.info.width, self.ready.info.height

    # ---- public API ----

    async def send(self, image: Picture) -> int:
        """Send a picture [H, W, 3] uint8 RGB of any size; returns its number. Waits up to 0.5 s while 2 are not taken,
        and while reconnecting."""
        await self._wait(lambda: len(self._waiting) < MAX_WAITING, _WAITING_S)
        await self._wait(lambda: self._socket is not None, None)
        self._check()
        seq = next(self._numbers)
        payload = await asyncio.to_thread(pack, image, self._format, self._quality)
        now_ms = time.monotonic() * 1e3
        height, width = image.shape[:2]
        header = Header(format=self._format, seq=seq, width=width, height=height, captured_ms=now_ms)
        self._waiting[seq] = now_ms
        while len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]
        socket = self._socket
        if socket is not None:
            with suppress(ConnectionClosed):  # lost with what is in flight; the reader notices too
                await socket.send(pack_header(header) + payload)
        return seq

    async def process(self, image: Picture, timeout_s: float = 30.0) -> StreamFrame:
        """The frame made from `image`, one at a time: for files. Resends after a lost connection.

        Raises TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._lost = False
                seq = await self.send(image)
                await self._wait(partial(self._settled, seq), None)
                self._check()
                if self._newest_source == seq:
                    return await anext(self)

    async def control(self, **changes: object) -> None:
        """Change controls by name; returns when the server has applied them. Raises RefusedControlError."""
        await self._request(lambda number: ControlMessage.model_validate({"id": number, "changes": changes}))

    async def set_source(self, *, prompt_only: bool) -> None:
        """Generate from the prompt alone, or from the pictures sent."""
        await self._request(lambda number: SourceMessage(id=number, prompt_only=prompt_only))

    def __aiter__(self) -> Self:
        """Yields the newest frame until the stream is closed."""
        return self

    async def __anext__(self) -> StreamFrame:
        """The newest frame that was not returned yet."""
        await self._wait(lambda: self._newest is not None, None)
        frame, self._newest = self._newest, None
        if frame is None:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        return frame

    # ---- the connection ----

    async def open(self, timeout_s: float) -> None:
        """Connect, and wait until the stream is open. Raises UnreachableError and the server's refusals."""
        self._task = asyncio.create_task(self._run(), name="zoetrope stream")
        await self._wait(lambda: self.ready is not None, timeout_s)
        if self._error is not None:
            raise self._error
        if self.ready is None:
            raise UnreachableError(f"The stream is not open after {timeout_s:g} s.", "Is the worker ready?")

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        self._over = True
        if self._socket is not None:
            await self._socket.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._notify()

    async def _run(self) -> None:
        """Connect and read, reconnecting within the grace period, until something ends the stream."""
        lost_s = time.monotonic()
        delays = itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1]))
        try:
            while not self._over:
                opened = await self._connection()
                if opened:
                    lost_s, delays = time.monotonic(), itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1]))
                if time.monotonic() - lost_s > self.session.expires_after_s:
                    raise UnreachableError("The connection was lost and could not be restored.", "Open a new session.")
                await asyncio.sleep(next(delays))
        except ZoetropeError as error:
            await self._end(error)
        finally:
            await self._end(UnreachableError("The stream ended unexpectedly.", "Open a new one."))

    async def _connection(self) -> bool:
        """One connection, from hello to its end. Returns whether the stream opened on it. Raises permanent errors."""
        opened = False
        try:
            async with connect(
                self._address, additional_headers=self._headers, compression=None, max_size=_MAX_BYTES
            ) as socket:
                await socket.send(dump(self._hello))
                async for message in socket:
                    if isinstance(message, bytes):
                        await self._handle_frame(socket, message)
                    else:
                        opened |= await self._handle_message(socket, message)
                self._check_close(socket.close_code, socket.close_reason)
        except ConnectionClosed as error:
            if error.rcvd is not None:
                self._check_close(error.rcvd.code, error.rcvd.reason)
        except InvalidStatus as error:
            if error.response.status_code in (401, 403):
                raise server_error(
                    "unauthorised", "The server refuses this client.", "Pass the server's token."
                ) from error
        except (OSError, InvalidHandshake):
            pass  # unreachable: retried within the grace period
        finally:
            await self._disconnected()
        return opened

    def _check_close(self, code: int | None, reason: str | None) -> None:
        """Raise the error that a close code stands for, unless reconnecting may help."""
        if code == CloseCode.CLOSED and not self._over:
            raise server_error("unknown_session", "The session has ended.", "Open a new one.")
        if code in _FINAL:
            raise server_error(_FINAL[CloseCode(code)], reason or f"The server closed with {code}.")

    async def _handle_message(self, socket: ClientConnection, text: str) -> bool:
        """Handle a text message. Returns True if it opens the stream."""
        message = parse_server(text)
        match message:
            case Ready():
                if self.ready is not None:
                    self.reconnects += 1
                self.ready, self._socket = message, socket
            case Taken():
                for seq in [seq for seq in self._waiting if seq <= message.seq]:
                    del self._waiting[seq]
            case Stats():
                self.stats = message
            case Notice():
                self.notice = message.text
            case Applied() | ErrorMessage():
                self._reply(message)
            case Ended():
                raise server_error("unknown_session", message.message, message.remedy)
        await self._notify()
        return isinstance(message, Ready)

    def _reply(self, message: Applied | ErrorMessage) -> None:
        if message.id is None:
            self.notice = message.message if isinstance(message, ErrorMessage) else ""
            return
        reply = self._replies.pop(message.id, None)
        if reply is None or reply.done():
            return
        if isinstance(message, ErrorMessage):
            reply.set_exception(server_error(message.code, message.message, message.remedy))
        else:
            reply.set_result(None)

    async def _handle_frame(self, socket: ClientConnection, message: bytes) -> None:
        header = parse_header(message)
        await socket.send(dump(Ack(seq=header.seq)))
        image = await asyncio.to_thread(
            unpack, message[HEADER_BYTES:], header.format, width=header.width, height=header.height, max_px=_MAX_PX
        )
        now_ms = time.monotonic() * 1e3
        self.missed += self._newest is not None
        self._newest_source = header.source_seq
        self._newest = StreamFrame(
            image=image,
            number=header.seq,
            source_seq=header.source_seq,
            latency_ms=now_ms - header.captured_ms if header.captured_ms else None,
            server_ms=header.server_us / 1e3,
        )
        await self._notify()

    async def _request(self, make: Callable[[int], Message]) -> None:
        """Send a numbered message and wait for its reply."""
        await self._wait(lambda: self._socket is not None, None)
        self._check()
        number = next(self._numbers)
        try:
            text = dump(make(number))
        except ValueError as error:
            raise InputError(f"The change cannot be sent as JSON: {error}.") from error
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        socket = self._socket
        assert socket is not None
        try:
            async with asyncio.timeout(_REPLY_S):
                await socket.send(text)
                await reply
        except (TimeoutError, ConnectionClosed) as error:
            raise UnreachableError("The server did not reply to a change.", "Send it again.") from error
        finally:
            self._replies.pop(number, None)

    # ---- states ----

    async def _disconnected(self) -> None:
        self._socket = None
        self._lost = True
        self._waiting.clear()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(UnreachableError("The connection was lost before the reply.", "Send it again."))
        await self._notify()

    async def _end(self, error: ZoetropeError) -> None:
        """End the stream; the first error is kept, and none after `close`."""
        if not self._over:
            self._over, self._error = True, error
        await self._notify()

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _settled(self, seq: int) -> bool:
        """Whether the frame for that picture has arrived, or will never arrive."""
        return self._newest_source == seq or self._lost

    async def _wait(self, condition: Callable[[], bool], timeout_s: float | None) -> None:
        """Wait until `condition` holds, the stream is over, or the timeout."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: condition() or self._over)

    def _check(self) -> None:
        if self._over:
            raise self._error or UnreachableError("The stream was closed.", "Open a new one.")
