"""Sends output frames to a stream's client: the newest one, whenever fewer than two are unacknowledged.

Depends on the session's feed and the wire format, not on the JSON messages.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from app.api.access import off_loop
from app.api.context import ApiContext
from app.api.pictures import pack
from app.session.feed import Delivery
from app.session.session import Session
from app.worker.stage_times import Stage

from .connection import CloseConnection, Connection
from .inputs import StreamInputs
from .messages import CloseCode
from .wire import Header, PictureFormat, pack_header

MAX_UNACKNOWLEDGED = 2
_POLL_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How frames are encoded. quality: 1..100, for JPEG and WebP. ack_s: timeout of acknowledgements."""

    format: PictureFormat
    quality: int
    ack_s: float


class StreamAnswers:
    """Sends a session's frames. Runs on the event loop; encodes on codec threads."""

    def __init__(
        self,
        connection: Connection,
        session: Session,
        context: ApiContext,
        inputs: StreamInputs,
        options: AnswerOptions,
    ) -> None:
        self._connection = connection
        self._session = session
        self._context = context
        self._inputs = inputs
        self._options = options
        self._unacknowledged: set[int] = set()
        self._acknowledged = asyncio.Event()
        self.missed = 0  # finished frames that were not sent here

    def acknowledge(self, number: int) -> None:
        """The client has received that frame; unknown numbers are ignored."""
        self._unacknowledged.discard(number)
        self._acknowledged.set()

    async def run(self) -> None:
        """Send until the session is over. Raises CloseConnection if the client does not acknowledge frames."""
        feed = self._session.feed()
        try:
            while not self._session.over:
                await self._wait_for_ack()
                delivery = await feed.next(_POLL_S)
                if delivery is not None:
                    self.missed += delivery.missed
                    await self._send(delivery)
        finally:
            feed.close()

    async def _wait_for_ack(self) -> None:
        try:
            async with asyncio.timeout(self._options.ack_s):
                while len(self._unacknowledged) >= MAX_UNACKNOWLEDGED:
                    self._acknowledged.clear()
                    await self._acknowledged.wait()
        except TimeoutError:
            reason = f"frames were not acknowledged for {self._options.ack_s:g} s"
            raise CloseConnection(CloseCode.TIMEOUT, reason) from None

    async def _send(self, delivery: Delivery) -> None:
        number = delivery.number % 2**32
        message = await off_loop(self._context, self._pack, delivery, number, user=self._session.id)
        self._unacknowledged.add(number)
        began_ns = time.monotonic_ns()
        await self._connection.send_bytes(message)
        sent_ns = time.monotonic_ns()
        self._session.stages.add(Stage.SEND, (sent_ns - began_ns) / 1e6)
        if delivery.frame.captured_ns is not None:
            self._session.stages.add(Stage.TOTAL, (sent_ns - delivery.frame.captured_ns) / 1e6)

    def _pack(self, delivery: Delivery, number: int) -> bytes:
        """Header and encoded picture. Called on a codec thread."""
        began_ns = time.monotonic_ns()
        frame = delivery.frame
        picture = pack(frame.image, self._options.format, self._options.quality)
        packed_ns = time.monotonic_ns()
        self._session.stages.add(Stage.PACK, (packed_ns - began_ns) / 1e6)
        origin = self._inputs.origin(frame.captured_ns)
        header = Header(
            format=self._options.format,
            seq=number,
            source_seq=origin.seq if origin is not None else None,
            captured_ms=origin.captured_ms if origin is not None else 0.0,
            width=frame.image.shape[1],
            height=frame.image.shape[0],
            server_us=0 if frame.captured_ns is None or origin is None else (packed_ns - frame.captured_ns) // 1000,
        )
        return pack_header(header) + picture
