"""Receives a stream's input pictures: at most one waits, the newest wins; decoded on codec threads.

Depends on the session and the wire format, not on the JSON messages.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from app.api.access import off_loop
from app.api.context import ApiContext
from app.api.pictures import PictureError, unpack
from app.session.session import Session
from app.worker.stage_times import Stage

from .connection import CloseConnection, Connection
from .messages import CloseCode, ErrorMessage
from .wire import HEADER_BYTES, Header, PictureFormat, WireError, parse_header

_MAX_BAD = 10  # bad pictures before the connection is closed
_MAX_HEADERS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """A picture as it arrived."""

    header: Header
    message: bytes
    arrived_ns: int

    @property
    def file(self) -> bytes | None:
        """The JPEG or WebP file, for a take; None for raw pixels."""
        return None if self.header.format is PictureFormat.RGB else self.message[HEADER_BYTES:]


class StreamInputs:
    """Passes pictures to a session. Used on the event loop; only `origin` is thread-safe."""

    def __init__(self, connection: Connection, session: Session, context: ApiContext) -> None:
        self._connection = connection
        self._session = session
        self._context = context
        self._waiting: _Input | None = None
        self._arrived = asyncio.Event()
        self._last_ns = 0
        self._headers: dict[int, Header] = {}  # by arrival time, which the output frame carries as captured_ns
        self._bad = 0

    async def offer(self, message: bytes) -> None:
        """Queue a binary message; a picture it replaces counts as dropped. Raises CloseConnection for an invalid
        header."""
        arrived_ns = max(time.monotonic_ns(), self._last_ns + 1)  # unique
        self._last_ns = arrived_ns
        try:
            header = parse_header(message)
        except WireError as error:
            raise await self._connection.refuse(error) from error
        if self._waiting is not None:
            self._session.drop_input(self._waiting.arrived_ns, self._waiting.file)
        self._waiting = _Input(header=header, message=message, arrived_ns=arrived_ns)
        self._arrived.set()

    async def run(self) -> None:
        """Decode and submit pictures in order. Raises CloseConnection after the tenth bad picture."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._waiting = self._waiting, None
            assert waiting is not None, "woken without a picture"
            self._headers[waiting.arrived_ns] = waiting.header  # before its output frame can exist
            while len(self._headers) > _MAX_HEADERS:
                del self._headers[next(iter(self._headers))]
            try:
                await off_loop(self._context, self._submit, waiting, user=self._session.id)
            except PictureError as error:
                await self._refuse(error)

    def origin(self, captured_ns: int | None) -> Header | None:
        """The client's header of the input captured at that time; None if it came from elsewhere or is too old."""
        return self._headers.get(captured_ns) if captured_ns is not None else None

    def _submit(self, waiting: _Input) -> None:
        """Called on a codec thread."""
        began_s = time.perf_counter()
        header = waiting.header
        picture = unpack(
            waiting.message[HEADER_BYTES:],
            header.format,
            width=header.width,
            height=header.height,
            max_px=self._context.limits.picture_px,
        )
        self._session.stages.add(Stage.UNPACK, (time.perf_counter() - began_s) * 1000)
        self._session.submit(picture, waiting.arrived_ns, waiting.file)

    async def _refuse(self, error: PictureError) -> None:
        self._bad += 1
        await self._connection.send(ErrorMessage(code="bad_picture", message=error.message, remedy=error.remedy))
        if self._bad >= _MAX_BAD:
            raise CloseConnection(CloseCode.POLICY, f"{_MAX_BAD} bad pictures")
