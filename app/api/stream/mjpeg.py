"""A session's frames as Motion JPEG: for `<img>`, OBS, ffmpeg and other readers of multipart/x-mixed-replace.

Newest wins: a slow reader gets fewer frames. A reader that joins gets the newest frame at once, and a frame that no
other follows is sent again: Chromium shows a part when the next one begins. It has the limits of the stream's other
doors: so many readers a session, and so much time for a reader to take what was sent.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from app.api.access import MJPEG, off_loop, session_of, session_signed
from app.api.context import ApiContext
from app.api.errors import error_answer
from app.api.sessions import BUSY, REFUSALS, SESSION_TOKEN, UNFIT
from app.media.picture import jpeg
from app.session.feed import Delivery, Feed
from app.session.session import Session
from app.worker.handle import BusyError
from app.worker.stage_times import Stage
from pipelines.core.types import Picture

from .connection import StreamLimits

_BOUNDARY = "zoetrope-frame"
_AGAIN_S = 0.2  # until a frame that no other followed is sent again
_STILL_S = 1.0  # and again, as long as it stands
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold frames back
_MEDIA_TYPE = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"


def router(context: ApiContext, limits: StreamLimits | None = None) -> APIRouter:
    """The one route."""
    readers = MjpegReaders(context, limits or StreamLimits())
    routes = APIRouter(prefix="/v1", tags=["frames"])

    @routes.get(
        "/sessions/{session_id}/mjpeg",
        operation_id="watch_session",
        response_class=StreamingResponse,
        responses={200: {"content": {"multipart/x-mixed-replace": {}}}, **REFUSALS, **UNFIT, **BUSY},
        dependencies=[Depends(SESSION_TOKEN)],
    )
    async def watch_session(
        session_id: str,
        request: Request,
        token: Annotated[str | None, Query(description="From a session's mjpeg_url; instead of the header.")] = None,
        quality: Annotated[int, Query(ge=1, le=100)] = 85,
    ) -> MjpegResponse:
        """The session's frames until it ends, for at most 4 readers; one that takes nothing for 10 s is let go."""
        if token is not None:
            session = session_signed(context, session_id, MJPEG, token)
        else:
            session = session_of(context, session_id, request)
        return MjpegResponse(context, session, quality, readers)

    return routes


class MjpegReaders:
    """Counts the readers of each session, and encodes a frame once for all of them. Used on one event loop."""

    def __init__(self, context: ApiContext, limits: StreamLimits) -> None:
        self.send_s = limits.send_s
        self._context = context
        self._maximum = limits.per_session
        self._of: Counter[Session] = Counter()
        self._newest: dict[tuple[Session, int], tuple[int, asyncio.Task[bytes]]] = {}  # of session and quality

    def enter(self, session: Session) -> None:
        """A reader of the session. Raises BusyError if it has too many."""
        if self._of[session] >= self._maximum:
            raise BusyError(
                f"Busy: this session has {self._maximum} readers of Motion JPEG.", "Close one, or try again shortly."
            )
        self._of[session] += 1
        session.connect()

    def leave(self, session: Session) -> None:
        """It reads no more; the grace period begins with the last one."""
        session.disconnect()
        self._of[session] -= 1
        if not self._of[session]:
            del self._of[session]
            self._newest = {key: encoded for key, encoded in self._newest.items() if key[0] is not session}

    async def part(self, session: Session, delivery: Delivery, quality: int) -> bytes:
        """A frame with its head, and the boundary: readers wait for it."""
        number, encoding = self._newest.get((session, quality), (0, None))
        if encoding is None or number != delivery.number:
            encoding = asyncio.create_task(self._encoded(session, delivery.frame.image, quality))
            self._newest[session, quality] = delivery.number, encoding
        return await asyncio.shield(encoding)  # others may wait for it too

    async def _encoded(self, session: Session, image: Picture, quality: int) -> bytes:
        began_s = time.perf_counter()
        encoded = await off_loop(self._context, jpeg, image, quality, user=session.id)
        session.stages.add(Stage.PACK, (time.perf_counter() - began_s) * 1e3)
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(encoded)}\r\n\r\n".encode()
        return head + encoded + f"\r\n--{_BOUNDARY}\r\n".encode()


class MjpegResponse(StreamingResponse):
    """Counts as a connection of the session while its reader takes what is sent."""

    def __init__(self, context: ApiContext, session: Session, quality: int, readers: MjpegReaders) -> None:
        self._context = context
        self._session = session
        self._quality = quality
        self._readers = readers
        self._feed: Feed | None = None
        self._reading = False
        super().__init__(self._parts(), media_type=_MEDIA_TYPE, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the session ends or the client disconnects. A reader that stalls is let go: the response ends when
        it reads on, or when its connection is cut."""
        try:
            self._readers.enter(self._session)
        except BusyError as error:
            await error_answer(error, self._context.table.retry_after_s)(scope, receive, send)
            return
        self._feed, self._reading = self._session.feed(from_newest=True), True

        async def send_in_time(message: Message) -> None:
            if not self._reading:
                await send(message)
                return
            try:
                async with asyncio.timeout(self._readers.send_s):
                    await send(message)
            except TimeoutError:
                self._let_go()

        try:
            await super().__call__(scope, receive, send_in_time)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        """Give the place back. Idempotent."""
        if self._reading:
            assert self._feed is not None
            self._reading = False
            self._feed.close()
            self._readers.leave(self._session)

    async def _parts(self) -> AsyncIterator[bytes]:
        feed = self._feed
        assert feed is not None
        yield f"--{_BOUNDARY}\r\n".encode()
        part, wait_s = b"", None
        while True:
            delivery = await feed.next(wait_s)
            if not self._reading:  # let go
                return
            if delivery is not None:
                part, wait_s = await self._readers.part(self._session, delivery, self._quality), _AGAIN_S
                del delivery  # a reader that stalls keeps no picture
            elif self._session.over:
                return
            else:
                wait_s = _STILL_S
            yield part
