"""One picture from a prompt or from another picture: opens a session, takes its first frame, closes it.

Has a timeout; counts as a session while it runs.
"""

from __future__ import annotations

import asyncio
import io
import time
from dataclasses import dataclass
from functools import partial

import cv2
from fastapi import APIRouter, Request, Response

from app.media.picture import jpeg
from app.session.session import Session
from pipelines.core.controls import Control
from pipelines.core.errors import WorkerError, ZoetropeError
from pipelines.core.types import Picture

from .access import off_loop
from .context import ApiContext
from .pictures import read_picture
from .schema import ErrorAnswer, GenerateOptions
from .sessions import BUSY, UNFIT, UNREAD
from .uploads import multipart_schema, read_multipart, read_options

_MAX_S = 60.0
_USER = "generate"  # of the codec threads
_RETRY_S = 0.05  # between attempts to submit the picture while the stream is not open yet


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    image: Picture
    seconds: float


def router(context: ApiContext) -> APIRouter:
    """The one route."""
    routes = APIRouter(prefix="/v1", tags=["pictures"])

    @routes.post(
        "/generate",
        operation_id="generate",
        response_class=Response,
        responses={
            200: {"content": {"image/png": {}, "image/jpeg": {}}},
            413: {"model": ErrorAnswer, "description": "the picture is too large"},
            **UNREAD,
            **UNFIT,
            **BUSY,
        },
        openapi_extra=multipart_schema(GenerateOptions, "picture", "image/jpeg, image/png, image/webp"),
    )
    async def generate(request: Request) -> Response:
        """Generate one picture from the prompt alone, or from the uploaded picture."""
        sink = io.BytesIO()
        maximum = context.limits.message_bytes
        fields, has_picture = await read_multipart(context, request, file_field="picture", sink=sink, max_bytes=maximum)
        options = read_options(GenerateOptions, fields)
        picture = None
        if has_picture:
            read = partial(read_picture, sink.getvalue(), max_px=context.limits.picture_px)
            picture = await off_loop(context, read, user=_USER)
        result = await _generate(context, Control.of(options.controls.changes()), picture)
        encoded = await off_loop(context, _encode, result.image, options, user=_USER)
        headers = {"X-Zoetrope-Seconds": f"{result.seconds:.3f}", "Cache-Control": "no-store"}
        return Response(encoded, media_type=f"image/{options.format}", headers=headers)

    return routes


async def _generate(context: ApiContext, control: Control, picture: Picture | None) -> _Result:
    began_s = time.monotonic()
    session = await off_loop(context, lambda: context.table.open(control=control, prompt_only=picture is None))
    session.connect()
    try:
        async with asyncio.timeout(_MAX_S):
            image = await _first_frame(context, session, picture)
    except TimeoutError:
        raise WorkerError(
            f"No picture within {_MAX_S:.0f} s.", "Check with GET /readyz whether the worker is ready."
        ) from None
    finally:
        session.disconnect()
        await off_loop(context, session.close)
    return _Result(image=image, seconds=time.monotonic() - began_s)


async def _first_frame(context: ApiContext, session: Session, picture: Picture | None) -> Picture:
    """The stream's first frame, or the one made from `picture`."""
    feed = session.feed()
    submitted = picture is None
    try:
        while not session.over:
            if not submitted and picture is not None:
                submitted = await off_loop(context, session.submit, picture, user=_USER) is not None
            delivery = await feed.next(None if submitted else _RETRY_S)
            if delivery is not None:
                return delivery.frame.image
    finally:
        feed.close()
    raise session.error or ZoetropeError("The session ended before there was a picture.", "Try again.")


def _encode(image: Picture, options: GenerateOptions) -> bytes:
    if options.format == "jpeg":
        return jpeg(image, options.quality)
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done, "PNG encoding of a uint8 RGB picture cannot fail"
    return bytes(data.tobytes())
