"""A session's frames as Motion JPEG: for `<img>`, OBS, ffmpeg and other readers of multipart/x-mixed-replace.

Newest wins: a slow reader gets fewer frames. A reader that joins gets the newest frame at once, and a frame that no
other follows is sent again: Chromium shows a part when the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.access import MJPEG, off_loop, session_of, session_signed
from app.api.context import ApiContext
from app.api.sessions import REFUSALS, SESSION_TOKEN, UNFIT
from app.media.picture import jpeg
from app.session.feed import Feed
from app.session.session import Session
from app.worker.stage_times import Stage
from pipelines.core.types import Picture

_BOUNDARY = "zoetrope-frame"
_AGAIN_S = 0.2  # until a frame that no other followed is sent again
_STILL_S = 1.0  # and again, as long as it stands
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # nginx would hold frames back
_MEDIA_TYPE = f"multipart/x-mixed-replace; boundary={_BOUNDARY}"


def router(context: ApiContext) -> APIRouter:
    """The one route."""
    routes = APIRouter(prefix="/v1", tags=["frames"])

    @routes.get(
        "/sessions/{session_id}/mjpeg",
        operation_id="watch_session",
        response_class=StreamingResponse,
        responses={200: {"content": {"multipart/x-mixed-replace": {}}}, **REFUSALS, **UNFIT},
        dependencies=[Depends(SESSION_TOKEN)],
    )
    async def watch_session(
        session_id: str,
        request: Request,
        token: Annotated[str | None, Query(description="From a session's mjpeg_url; instead of the header.")] = None,
        quality: Annotated[int, Query(ge=1, le=100)] = 85,
    ) -> MjpegResponse:
        """The session's frames until it ends."""
        if token is not None:
            session = session_signed(context, session_id, MJPEG, token)
        else:
            session = session_of(context, session_id, request)
        return MjpegResponse(context, session, quality)

    return routes


class MjpegResponse(StreamingResponse):
    """Counts as a connection of the session while it is being sent."""

    def __init__(self, context: ApiContext, session: Session, quality: int) -> None:
        self._context = context
        self._session = session
        self._quality = quality
        self._feed: Feed | None = None
        super().__init__(self._parts(), media_type=_MEDIA_TYPE, headers=_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the session ends or the client disconnects."""
        self._session.connect()
        self._feed = self._session.feed(from_newest=True)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.close()
            self._session.disconnect()

    async def _parts(self) -> AsyncIterator[bytes]:
        feed = self._feed
        assert feed is not None
        yield f"--{_BOUNDARY}\r\n".encode()
        part, wait_s = b"", None
        while True:
            delivery = await feed.next(wait_s)
            if delivery is not None:
                part, wait_s = await self._part(delivery.frame.image), _AGAIN_S
            elif self._session.over:
                return
            else:
                wait_s = _STILL_S
            yield part

    async def _part(self, image: Picture) -> bytes:
        """A frame with its head, and the boundary: readers wait for it."""
        began_s = time.perf_counter()
        encoded = await off_loop(self._context, jpeg, image, self._quality)
        self._session.stages.add(Stage.PACK, (time.perf_counter() - began_s) * 1e3)
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(encoded)}\r\n\r\n".encode()
        return head + encoded + f"\r\n--{_BOUNDARY}\r\n".encode()
