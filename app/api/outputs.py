"""A session's outputs over HTTP: start, list, stop. Makes each kind; independent of formats and transports.

Where a client may push to is `context.push_hosts`; no path is ever taken from a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from app.outputs.manager import OutputsError, SessionOutputs
from app.outputs.output import Output, OutputReading
from app.outputs.push import Push, PushOptions
from app.outputs.push_hosts import PushHostError
from app.outputs.record import Recording, RecordingOptions
from app.outputs.recording_sound import SoundFormat
from app.outputs.recordings import RecordingStore, recording_id
from app.outputs.table import OutputTable
from app.outputs.transports import address_of
from app.outputs.virtual_camera import VirtualCamera, VirtualCameraOptions
from app.outputs.whip_output import WhipOutput
from app.outputs.whip_push import WhipPushOptions
from app.session.session import Session
from pipelines.core.errors import InputError

from .access import session_of, session_path
from .context import ApiContext
from .errors import NotReadyError
from .output_schema import (
    OutputList,
    OutputRequest,
    OutputView,
    RecordingRequest,
    RtmpRequest,
    SrtRequest,
    VirtualCameraRequest,
    WhipRequest,
)
from .recordings import recording_routes
from .schema import ErrorAnswer
from .sessions import BUSY, REFUSALS, SESSION_TOKEN, UNFIT, UNREAD

_UNKNOWN: dict[int | str, dict[str, Any]] = {
    **REFUSALS,
    404: {"model": ErrorAnswer, "description": "no such output, no such session, or not its token"},
}
_LACKING: dict[int | str, dict[str, Any]] = {
    403: {"model": ErrorAnswer, "description": "this server does not push to that host"},
    409: {"model": ErrorAnswer, "description": "eight are in use, there is no virtual camera here, or no stream yet"},
}
_FULL: dict[int | str, dict[str, Any]] = {500: {"model": ErrorAnswer, "description": "the disk does not take it"}}


def router(context: ApiContext) -> APIRouter:
    """The routes under /v1/sessions/{id}/outputs, and those of the recordings that they make."""
    store = RecordingStore(context.data / "recordings", context.limits.recording_bytes)
    both = APIRouter()
    both.include_router(output_routes(context, store))
    both.include_router(recording_routes(store))
    return both


def output_routes(context: ApiContext, store: RecordingStore) -> APIRouter:
    """With the application's end all outputs are stopped.

    Starting and stopping may take seconds: they use the event loop's own threads, not those of the codecs.
    """
    table, numbers = OutputTable(), count(1)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(table.close)

    routes = APIRouter(prefix="/v1", tags=["outputs"], dependencies=[Depends(SESSION_TOKEN)], lifespan=lifespan)

    @routes.get("/sessions/{session_id}/outputs", operation_id="list_outputs", responses={**REFUSALS, **UNFIT})
    async def list_outputs(session_id: str, request: Request) -> OutputList:
        """The state of each; a failed one stays until it is stopped, and says why it failed."""
        outputs = table.known(session_of(context, session_id, request))
        readings = outputs.read() if outputs is not None else {}
        return OutputList(outputs=[view(name, reading) for name, reading in readings.items()])

    @routes.post(
        "/sessions/{session_id}/outputs",
        status_code=201,
        operation_id="start_output",
        responses={**REFUSALS, **_LACKING, **UNREAD, **UNFIT, **BUSY, **_FULL},
    )
    async def start_output(session_id: str, request: Request, response: Response, wanted: OutputRequest) -> OutputView:
        """Give the session's frames to one more output. Pushes connect with the first frame."""
        session = session_of(context, session_id, request)
        maker = Maker(context=context, store=store, session=session, loop=asyncio.get_running_loop())
        name = f"{wanted.kind}-{next(numbers)}"
        reading = await asyncio.to_thread(begin, table.of(session), name, maker.of(wanted))
        response.headers["Location"] = f"{session_path(session_id, 'outputs')}/{name}"
        return view(name, reading)

    @routes.delete(
        "/sessions/{session_id}/outputs/{output_id}", operation_id="stop_output", responses={**_UNKNOWN, **UNFIT}
    )
    async def stop_output(session_id: str, output_id: str, request: Request) -> OutputView:
        """Stop it, wait for its end and forget it; answers with its last words."""
        outputs = table.known(session_of(context, session_id, request))
        if outputs is None or output_id not in outputs.read():
            raise HTTPException(404, "This session has no such output.")
        return view(output_id, await asyncio.to_thread(outputs.stop, output_id))

    return routes


def begin(outputs: SessionOutputs, name: str, make: Callable[[], Output]) -> OutputReading:
    """Start it; what is refused for where, and not for what, is told as such (403, 409)."""
    try:
        return outputs.start(name, make)
    except PushHostError as error:
        raise HTTPException(403, str(error)) from error
    except OutputsError as error:
        raise NotReadyError(error.message, error.remedy) from error


def view(name: str, reading: OutputReading) -> OutputView:
    """An output as JSON has it. name: KIND-NUMBER."""
    recording = recording_id(reading.file) if reading.file else None
    return OutputView.model_validate(
        {
            "id": name,
            "kind": name.rpartition("-")[0],
            "phase": reading.phase.value,
            "done": reading.done,
            "dropped": reading.dropped,
            "text": reading.text,
            "recording": recording,
            "file_url": f"/v1/recordings/{recording}/file" if recording is not None else None,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """Makes the output that a request asks for; its methods raise InputError and OutputError."""

    context: ApiContext
    store: RecordingStore
    session: Session
    loop: asyncio.AbstractEventLoop

    def of(self, wanted: Any) -> Callable[[], Output]:
        """wanted: one of the request models."""
        return lambda: _MAKERS[type(wanted)](self, wanted)

    def recording(self, wanted: RecordingRequest) -> Output:
        path = self.store.begin()
        options = RecordingOptions(
            path=path,
            sound=SoundFormat(channels=2) if wanted.sound else None,
            listen=self.session.sound.listen if wanted.sound else None,
            may_grow=self.store.may_grow,
            on_end=lambda: self.store.ended(path),
        )
        return Recording(options)

    def push(self, wanted: RtmpRequest | SrtRequest) -> Output:
        address = address_of(wanted.address.get_secret_value())
        if address.scheme.removesuffix("s") != wanted.kind:
            raise InputError(f"The address does not fit {wanted.kind}.", f"Give {wanted.kind}://HOST/...")
        self.context.push_hosts.check(address.url)
        rate = Fraction(wanted.frame_rate)
        return Push(PushOptions(address=address, rate=rate, video_kbps=wanted.video_kbps))

    def whip(self, wanted: WhipRequest) -> Output:
        options = WhipPushOptions(
            url=wanted.address.get_secret_value(),
            token=wanted.token.get_secret_value() if wanted.token is not None else None,
            webrtc=self.context.webrtc,
        )
        self.context.push_hosts.check(options.url)
        return WhipOutput(self.session, self.context.codecs, self.loop, options)

    def virtual_camera(self, wanted: VirtualCameraRequest) -> Output:
        info = self.session.proxy.info
        if info is None:
            raise NotReadyError("The stream is not open yet.", "Ask again when the session is live.")
        size = (max(16, info.width // 2 * 2), max(16, info.height // 2 * 2))
        return VirtualCamera(VirtualCameraOptions(size=size, rate=Fraction(wanted.frame_rate)))


_MAKERS: dict[type, Callable[[Maker, Any], Output]] = {
    RecordingRequest: Maker.recording,
    RtmpRequest: Maker.push,
    SrtRequest: Maker.push,
    WhipRequest: Maker.whip,
    VirtualCameraRequest: Maker.virtual_camera,
}
