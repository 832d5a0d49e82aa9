"""A session's outputs over HTTP: start, list, stop. Independent of the kinds of output, which are a table's.

Where a client may push to is `context.push_hosts`; no path is ever taken from a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from starlette.exceptions import HTTPException

from app.outputs.manager import OutputsError, SessionOutputs
from app.outputs.output import Output, OutputReading
from app.outputs.output_kind import OutputRequest, OutputSetting
from app.outputs.push_hosts import PushHostError
from app.outputs.recordings import RecordingStore, recording_id
from app.outputs.table import OutputTable

from .access import session_of, session_path, session_route
from .context import ApiContext
from .errors import NotReadyError
from .output_schema import OutputList, OutputView, output_schema
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
    both.include_router(recording_routes(store, context.root_path))
    return both


def output_routes(context: ApiContext, store: RecordingStore) -> APIRouter:
    """With the application's end all outputs are stopped.

    Starting and stopping may take seconds: they use the event loop's own threads, not those of the codecs.
    """
    table, numbers = OutputTable(), count(1)
    kinds, schema = {kind.name: kind for kind in context.outputs}, output_schema(context.outputs)

    def view(name: str, reading: OutputReading) -> OutputView:
        return schema.view.model_validate(shown(name, reading, context.root_path))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(table.close)

    routes = APIRouter(
        prefix="/v1",
        tags=["outputs"],
        dependencies=[Depends(SESSION_TOKEN)],
        lifespan=lifespan,
        route_class=session_route(context),
    )

    @routes.get(
        "/sessions/{session_id}/outputs",
        operation_id="list_outputs",
        response_model=schema.list,
        responses={**REFUSALS, **UNFIT},
    )
    async def list_outputs(session_id: str, request: Request) -> OutputList:
        """The state of each; a failed one stays until it is stopped, and says why it failed."""
        outputs = table.known(session_of(context, session_id, request))
        readings = outputs.read() if outputs is not None else {}
        return schema.list(outputs=[view(name, reading) for name, reading in readings.items()])

    async def start_output(session_id: str, request: Request, response: Response, wanted: OutputRequest) -> OutputView:
        """Give the session's frames to one more output. Pushes connect with the first frame."""
        session = session_of(context, session_id, request)
        setting = OutputSetting(
            session=session,
            recordings=store,
            push_hosts=context.push_hosts,
            webrtc=context.webrtc,
            codecs=context.turns.of(session_id),
            loop=asyncio.get_running_loop(),
        )
        name = f"{wanted.kind}-{next(numbers)}"
        make = partial(kinds[wanted.kind].make, wanted, setting)
        reading = await asyncio.to_thread(begin, table.of(session), name, make)
        response.headers["Location"] = f"{session_path(context, session_id, 'outputs')}/{name}"
        return view(name, reading)

    start_output.__annotations__["wanted"] = schema.request  # of the table's kinds
    routes.post(
        "/sessions/{session_id}/outputs",
        status_code=201,
        operation_id="start_output",
        response_model=schema.view,
        responses={**REFUSALS, **_LACKING, **UNREAD, **UNFIT, **BUSY, **_FULL},
    )(start_output)

    @routes.delete(
        "/sessions/{session_id}/outputs/{output_id}",
        operation_id="stop_output",
        response_model=schema.view,
        responses={**_UNKNOWN, **UNFIT},
    )
    async def stop_output(session_id: str, output_id: str, request: Request) -> OutputView:
        """Stop it, wait for its end and forget it; answers with its last words."""
        outputs = table.known(session_of(context, session_id, request))
        if outputs is None or output_id not in outputs.read():
            raise HTTPException(404, "This session has no such output; GET its outputs for those that it has.")
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


def shown(name: str, reading: OutputReading, root_path: str = "") -> dict[str, object]:
    """An output as JSON has it. name: KIND-NUMBER. root_path: of the server (app/api/context.py)."""
    recording = recording_id(reading.file) if reading.file else None
    return {
        "id": name,
        "kind": name.rpartition("-")[0],
        "phase": reading.phase.value,
        "done": reading.done,
        "dropped": reading.dropped,
        "text": reading.text,
        "recording": recording,
        "file_url": f"{root_path}/v1/recordings/{recording}/file" if recording is not None else None,
    }
