"""The client's side of a frame stream: pictures out, frames in, changes answered; comes back when a connection is lost.

Nothing queues: the newest frame wins, and at most 2 pictures wait for the stream to take them. Lives on one event loop.
Knows no HTTP: client.py opens and closes the session.
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
from app.media.picture import Picture
from pipelines.core.errors import InputError, ZoetropeError

from .errors import UnreachableError, server_error

MAX_WAITING = 2
_WAITING_S = 0.5  # then a picture counts as lost
_ANSWER_S = 10.0
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
    """A finished frame. image: [H, W, 3] uint8 RGB. number: counts the session's frames; gaps are frames not sent.

    source_seq: what `send` returned for its input; None: from the prompt alone. latency_ms: from `send` to here.
    server_ms: of that, inside the server.
    """

    image: Picture
    number: int
    source_seq: int | None
    latency_ms: float | None
    server_ms: float


class ClientStream:
    """Made by ZoetropeClient.stream. Iterate over it for frames, until it is closed; it raises what ended it."""

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
        self.missed = 0  # frames that came and were replaced by newer ones before they were taken
        self.ready: Ready | None = None
        self.stats: Stats | None = None
        self.notice = ""
        self._address = address
        self._headers = headers
        self._format = PictureFormat[picture_format.upper()]
        self._quality = quality
        self._hello = Hello(token=session.token, format=picture_format, quality=quality)
        self._changed = asyncio.Condition()
        self._socket: ClientConnection | None = None  # while a stream stands on it
        self._newest: StreamFrame | None = None
        self._answered: int | None = None  # the input that the newest frame was made of
        self._lost = False  # what was in flight, with a connection
        self._waiting: dict[int, float] = {}  # seq: when it was sent, in ms of this clock
        self._numbers = itertools.count()
        self._replies: dict[int, asyncio.Future[None]] = {}
        self._error: ZoetropeError | None = None
        self._over = False
        self._task: asyncio.Task[None] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px of the frames."""
        assert self.ready is not None, "asked before it was opened"
        return self.ready.info.width, self.ready.info.height

    # ---- what a program does ----

    async def send(self, image: Picture) -> int:
        """Send a picture [H, W, 3] uint8 RGB of any size; its number. Waits while 2 are not taken, half a second at
        most, and while the connection is being made anew."""
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
            with suppress(ConnectionClosed):  # it is lost, as what is in flight is; the reader sees it too
                await socket.send(pack_header(header) + payload)
        return seq

    async def process(self, image: Picture, timeout_s: float = 30.0) -> StreamFrame:
        """The frame made of `image`, one at a time: for files. Sends again after a lost connection.

        Raises TimeoutError.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                self._lost = False
                seq = await self.send(image)
                await self._wait(partial(self._knows, seq), None)
                self._check()
                if self._answered == seq:
                    return await anext(self)

    async def control(self, **changes: object) -> None:
        """Change controls by name; returns when the server has taken them. Raises RefusedControlError."""
        await self._ask(lambda number: ControlMessage.model_validate({"id": number, "changes": changes}))

    async def set_source(self, *, prompt_only: bool) -> None:
        """Generate from the prompt alone, or from what is sent."""
        await self._ask(lambda number: SourceMessage(id=number, prompt_only=prompt_only))

    def __aiter__(self) -> Self:
        """The newest frame, again and again, until the stream is closed."""
        return self

    async def __anext__(self) -> StreamFrame:
        """The newest frame that was not taken yet."""
        await self._wait(lambda: self._newest is not None, None)
        frame, self._newest = self._newest, None
        if frame is None:
            if self._error is not None:
                raise self._error
            raise StopAsyncIteration
        return frame

    # ---- the connection ----

    async def open(self, timeout_s: float) -> None:
        """Connect, and wait until the stream stands. Raises UnreachableError and what the server refuses with."""
        self._task = asyncio.create_task(self._run(), name="zoetrope stream")
        await self._wait(lambda: self.ready is not None, timeout_s)
        if self._error is not None:
            raise self._error
        if self.ready is None:
            raise UnreachableError(f"The stream does not stand after {timeout_s:g} s.", "Is the worker ready?")

    async def close(self) -> None:
        """Leave. Closing twice is fine."""
        self._over = True
        if self._socket is not None:
            await self._socket.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._tell()

    async def _run(self) -> None:
        """Connect and read, again and again within the grace time, until something ends the stream."""
        lost_s = time.monotonic()
        delays = itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1]))
        try:
            while not self._over:
                stood = await self._connected()
                if stood:
                    lost_s, delays = time.monotonic(), itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1]))
                if time.monotonic() - lost_s > self.session.expires_after_s:
                    raise UnreachableError("The connection was lost and does not come back.", "Open a new session.")
                await asyncio.sleep(next(delays))
        except ZoetropeError as error:
            await self._end(error)
        finally:
            await self._end(UnreachableError("The stream broke off.", "Open a new one."))

    async def _connected(self) -> bool:
        """One connection from hello to its end; whether the stream stood on it. Raises what is final."""
        stood = False
        try:
            async with connect(
                self._address, additional_headers=self._headers, compression=None, max_size=_MAX_BYTES
            ) as socket:
                await socket.send(dump(self._hello))
                async for message in socket:
                    if isinstance(message, bytes):
                        await self._frame(socket, message)
                    else:
                        stood |= await self._word(socket, message)
                self._judge(socket.close_code, socket.close_reason)
        except ConnectionClosed as error:
            if error.rcvd is not None:
                self._judge(error.rcvd.code, error.rcvd.reason)
        except InvalidStatus as error:
            if error.response.status_code in (401, 403):
                raise server_error("unauthorised", "The server refuses this client.", "Give its token.") from error
        except (OSError, InvalidHandshake):
            pass  # it is away: tried again within the grace time
        finally:
            await self._lose()
        return stood

    def _judge(self, code: int | None, reason: str | None) -> None:
        """Raise what a closed connection means, unless it may be tried again."""
        if code == CloseCode.CLOSED and not self._over:
            raise server_error("unknown_session", "The session has ended.", "Open a new one.")
        if code in _FINAL:
            raise server_error(_FINAL[CloseCode(code)], reason or f"The server closed with {code}.")

    async def _word(self, socket: ClientConnection, text: str) -> bool:
        """A text message; True when the stream stands."""
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
        await self._tell()
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

    async def _frame(self, socket: ClientConnection, message: bytes) -> None:
        header = parse_header(message)
        await socket.send(dump(Ack(seq=header.seq)))
        image = await asyncio.to_thread(
            unpack, message[HEADER_BYTES:], header.format, width=header.width, height=header.height, max_px=_MAX_PX
        )
        now_ms = time.monotonic() * 1e3
        self.missed += self._newest is not None
        self._answered = header.source_seq
        self._newest = StreamFrame(
            image=image,
            number=header.seq,
            source_seq=header.source_seq,
            latency_ms=now_ms - header.captured_ms if header.captured_ms else None,
            server_ms=header.server_us / 1e3,
        )
        await self._tell()

    async def _ask(self, make: Callable[[int], Message]) -> None:
        """Send a numbered message, wait for its answer."""
        await self._wait(lambda: self._socket is not None, None)
        self._check()
        number = next(self._numbers)
        try:
            text = dump(make(number))
        except ValueError as error:
            raise InputError(f"The change does not fit into JSON: {error}.") from error
        reply = self._replies[number] = asyncio.get_running_loop().create_future()
        socket = self._socket
        assert socket is not None
        try:
            async with asyncio.timeout(_ANSWER_S):
                await socket.send(text)
                await reply
        except (TimeoutError, ConnectionClosed) as error:
            raise UnreachableError("The server has not answered a change.", "Send it again.") from error
        finally:
            self._replies.pop(number, None)

    # ---- states ----

    async def _lose(self) -> None:
        self._socket = None
        self._lost = True
        self._waiting.clear()
        for reply in self._replies.values():
            if not reply.done():
                reply.set_exception(UnreachableError("The connection was lost before the answer.", "Send it again."))
        await self._tell()

    async def _end(self, error: ZoetropeError) -> None:
        """Nothing comes any more; the first reason counts, and none after `close`."""
        if not self._over:
            self._over, self._error = True, error
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _knows(self, seq: int) -> bool:
        """Whether the picture of that number has its answer, or will have none."""
        return self._answered == seq or self._lost

    async def _wait(self, true: Callable[[], bool], timeout_s: float | None) -> None:
        """Until it is true, the stream is over, or the time is up."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._changed:
                await self._changed.wait_for(lambda: true() or self._over)

    def _check(self) -> None:
        if self._over:
            raise self._error or UnreachableError("The stream was closed.", "Open a new one.")
