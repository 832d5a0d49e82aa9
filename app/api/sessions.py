"""Sessions over HTTP: open, read, change, close; and the models of this server. Independent of frames."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Request, Response
from fastapi.security import HTTPBearer

from app.session.session import Session
from pipelines.core.controls import Control
from pipelines.kinds import built_in_names

from .access import MJPEG, off_loop, session_of, session_path, session_route, signed_path
from .context import ApiContext
from .schema import (
    ChangeRequest,
    ErrorAnswer,
    ModelList,
    ModelView,
    OpenRequest,
    SessionOpened,
    SessionView,
    StageView,
    StreamFacts,
    counts_of,
    execution_view,
    plain_controls,
    stream_facts,
)

SESSION_TOKEN = HTTPBearer(auto_error=False, scheme_name="session token", description="From POST /v1/sessions.")
REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": ErrorAnswer, "description": "no token of such a session"},
    404: {"model": ErrorAnswer, "description": "the session has ended"},
}
BUSY: dict[int | str, dict[str, Any]] = {503: {"model": ErrorAnswer, "description": "busy; Retry-After says when"}}
UNFIT: dict[int | str, dict[str, Any]] = {422: {"model": ErrorAnswer, "description": "something does not fit"}}
UNREAD: dict[int | str, dict[str, Any]] = {400: {"model": ErrorAnswer, "description": "the request cannot be read"}}


def router(context: ApiContext) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1", tags=["sessions"], route_class=session_route(context))
    guards = [Depends(SESSION_TOKEN)]

    @routes.post(
        "/sessions",
        status_code=201,
        operation_id="open_session",
        responses={**UNREAD, **UNFIT, **BUSY},
    )
    async def open_session(response: Response, wanted: Annotated[OpenRequest | None, Body()] = None) -> SessionOpened:
        """Open a session; its stream begins as soon as the worker is ready."""
        wanted = wanted or OpenRequest()
        control = Control.of(wanted.controls.changes())

        def call() -> Session:
            return context.table.open(control=control, prompt_only=wanted.prompt_only)

        session = await off_loop(context, call)
        response.headers["Location"] = session_path(context, session.id)
        return opened(context, session)

    @routes.get(
        "/sessions/{session_id}", operation_id="read_session", responses={**REFUSALS, **UNFIT}, dependencies=guards
    )
    async def read_session(session_id: str, request: Request) -> SessionView:
        """State, count of frames, rates and times of this moment."""
        session = session_of(context, session_id, request)
        return await off_loop(context, view, context, session, user=session.id)

    @routes.patch(
        "/sessions/{session_id}",
        operation_id="change_session",
        responses={**REFUSALS, **UNREAD, **UNFIT},
        dependencies=guards,
    )
    async def change_session(session_id: str, request: Request, change: ChangeRequest) -> SessionView:
        """Change controls, or the source. All or nothing."""
        session = session_of(context, session_id, request)

        def call() -> SessionView:
            if changes := change.controls.changes():
                session.apply(changes)
            if change.prompt_only is not None:
                session.set_source(prompt_only=change.prompt_only)
            return view(context, session)

        return await off_loop(context, call, user=session.id)

    @routes.delete(
        "/sessions/{session_id}",
        status_code=204,
        operation_id="close_session",
        responses={**REFUSALS, **UNFIT},
        dependencies=guards,
    )
    async def close_session(session_id: str, request: Request) -> None:
        """End the session and free its place."""
        session = session_of(context, session_id, request)
        await off_loop(context, session.close)

    @routes.get("/models", operation_id="list_models", tags=["models"])
    async def list_models() -> ModelList:
        """The models that this server has without downloading anything; render jobs may name them."""
        return ModelList(models=await off_loop(context, models, context.model))

    return routes


def opened(context: ApiContext, session: Session) -> SessionOpened:
    """The answer to who has opened it."""
    return SessionOpened(
        id=session.id,
        token=session.token,
        expires_after_s=context.table.limits.grace_s,
        info=_facts(context, session),
        stream_url=session_path(context, session.id, "stream"),
        mjpeg_url=signed_path(context, session, MJPEG),
        whip_url=session_path(context, session.id, "whip"),
        whep_url=session_path(context, session.id, "whep"),
    )


def view(context: ApiContext, session: Session) -> SessionView:
    """The session at this moment. controls: those of a fresh stream with all changes applied."""
    reading = session.read()
    status = context.table.workers.status_of(session.id)
    fresh = status.ready.controls if status.ready is not None else {}
    return SessionView(
        id=session.id,
        state=reading.state.value,
        info=_facts(context, session),
        controls=plain_controls({**fresh, **session.proxy.control.changes()}),
        accounting=counts_of(reading),
        frame_rate=round(reading.meter.frame_rate, 2),
        latency_ms=None if reading.meter.latency_ms is None else round(reading.meter.latency_ms, 1),
        stages={
            stage.value: StageView(p50_ms=times.p50_ms, p95_ms=times.p95_ms) for stage, times in reading.stages.items()
        },
        execution=execution_view(status),
        age_s=round(reading.age_s, 1),
        connections=reading.connections,
        trouble=reading.trouble,
        mjpeg_url=signed_path(context, session, MJPEG),
    )


def models(running: str) -> list[ModelView]:
    """Bundled, cached and built-in models, and the one that runs. Reads folders: not for the event loop."""
    from pipelines.files.hub import bundled_names

    bundled, built_in = bundled_names(), built_in_names()
    found = []
    for name, argument in model_arguments(running).items():
        origin: Literal["bundled", "cache", "given", "built in"] = "cache"
        if name in built_in:
            origin = "built in"
        elif name in bundled:
            origin = "bundled"
        elif argument != name:
            origin = "given"
        found.append(ModelView(name=name, origin=origin, running=argument == running))
    return found


def model_arguments(running: str) -> dict[str, str]:
    """The models that a request may name, and what the command line calls them.

    A folder given at the start goes by its last name: no path of the server is shown or taken.
    """
    from pipelines.files.hub import bundled_names, cached_repositories, is_hub_id

    names = (*bundled_names(), *(cached.hub_id for cached in cached_repositories()), *built_in_names())
    known = {name: name for name in names}
    if running not in known:
        known[running if is_hub_id(running) else Path(running).name] = running
    return known


def _facts(context: ApiContext, session: Session) -> StreamFacts | None:
    ready = context.table.workers.status_of(session.id).ready
    info = session.proxy.info or (ready.info if ready is not None else None)
    return stream_facts(info) if info is not None else None
