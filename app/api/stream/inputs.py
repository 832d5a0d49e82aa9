"""The pictures that a stream's client sends: one waits, the newest wins, codecs run on threads, numbers are remembered.

Knows the session and the wire format; knows no JSON.
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

from .line import Goodbye, Line
from .messages import CloseCode, ErrorMessage
from .wire import HEADER_BYTES, Header, PictureFormat, WireError, parse_header

_MAX_BAD = 10  # pictures until the connection ends
_MAX_REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """A picture as it has arrived."""

    header: Header
    message: bytes
    arrived_ns: int

    @property
    def file(self) -> bytes | None:
        """The JPEG or WebP file, for a take; None of raw pixels."""
        return None if self.header.format is PictureFormat.RGB else self.message[HEADER_BYTES:]


class StreamInputs:
    """Takes pictures for a session. On the event loop; only `origin` may be asked from any thread."""

    def __init__(self, line: Line, session: Session, context: ApiContext) -> None:
        self._line = line
        self._session = session
        self._context = context
        self._waiting: _Input | None = None
        self._arrived = asyncio.Event()
        self._last_ns = 0
        self._headers: dict[int, Header] = {}  # by time of arrival, which comes back as the answer's captured_ns
        self._bad = 0

    async def offer(self, message: bytes) -> None:
        """A binary message. The picture that it replaces counts as dropped. Raises Goodbye for what has no header."""
        arrived_ns = max(time.monotonic_ns(), self._last_ns + 1)  # no two are equal
        self._last_ns = arrived_ns
        try:
            header = parse_header(message)
        except WireError as error:
            raise await self._line.refuse(error) from error
        if self._waiting is not None:
            self._session.drop_input(self._waiting.arrived_ns, self._waiting.file)
        self._waiting = _Input(header=header, message=message, arrived_ns=arrived_ns)
        self._arrived.set()

    async def run(self) -> None:
        """Unpack and submit, one after the other; ends with Goodbye after the tenth bad picture."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            waiting, self._waiting = self._waiting, None
            assert waiting is not None, "told of a picture that is not there"
            self._headers[waiting.arrived_ns] = waiting.header  # before the answer can be there
            while len(self._headers) > _MAX_REMEMBERED:
                del self._headers[next(iter(self._headers))]
            try:
                await off_loop(self._context, self._submit, waiting)
            except PictureError as error:
                await self._refuse(error)

    def origin(self, captured_ns: int | None) -> Header | None:
        """The client's header of the input that was captured then; None when it came from elsewhere, or long ago."""
        return self._headers.get(captured_ns) if captured_ns is not None else None

    def _submit(self, waiting: _Input) -> None:
        """On a codec thread."""
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
        await self._line.send(ErrorMessage(code="bad_picture", message=error.message, remedy=error.remedy))
        if self._bad >= _MAX_BAD:
            raise Goodbye(CloseCode.POLICY, f"{_MAX_BAD} bad pictures")
