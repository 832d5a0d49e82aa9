"""Takes over HTTP: start and stop recording a session's take. Independent of the take's files: uses names only."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from app.session.session import Session
from app.takes.store import TakeStore

from .access import session_of
from .context import ApiContext
from .schema import ErrorAnswer, Strict
from .sessions import BUSY, REFUSALS, SESSION_TOKEN, UNFIT, UNREAD


class TakeView(Strict):
    """A take that is being recorded."""

    take: str = Field(description="Its folder name; replay with: zoetrope render --take DATA/takes/NAME.")


class TakeState(Strict):
    """take: the name of the take being recorded, or null; the session's `trouble` says why one ended by itself."""

    take: str | None


def router(context: ApiContext) -> APIRouter:
    """The routes under /v1/sessions/{id}/take. Ending a take may take seconds, so it runs on a thread."""
    routes = APIRouter(prefix="/v1", tags=["takes"], dependencies=[Depends(SESSION_TOKEN)])
    store = TakeStore(context.data / "takes", context.limits.take_bytes)
    names: WeakKeyDictionary[Session, str] = WeakKeyDictionary()

    def begin(session: Session) -> str:
        folder = store.create()
        session.start_take(folder, store.may_grow)
        return folder.name

    @routes.get("/sessions/{session_id}/take", operation_id="read_take", responses={**REFUSALS, **UNFIT})
    async def read_take(session_id: str, request: Request) -> TakeState:
        """The name of the take being recorded, if any."""
        session = session_of(context, session_id, request)
        return TakeState(take=names.get(session) if session.recording else None)

    @routes.post(
        "/sessions/{session_id}/take",
        status_code=201,
        operation_id="start_take",
        responses={
            409: {"model": ErrorAnswer, "description": "a take is already being recorded"},
            **REFUSALS,
            **UNREAD,
            **UNFIT,
            **BUSY,
        },
    )
    async def start_take(session_id: str, request: Request) -> TakeView:
        """Start recording, with a new stream of the same controls. Ends with the session at the latest."""
        session = session_of(context, session_id, request)
        names[session] = await asyncio.to_thread(begin, session)
        return TakeView(take=names[session])

    @routes.delete(
        "/sessions/{session_id}/take",
        status_code=204,
        operation_id="stop_take",
        responses={**REFUSALS, **UNFIT},
    )
    async def stop_take(session_id: str, request: Request) -> None:
        """End the take and wait until it is written; does nothing without one."""
        session = session_of(context, session_id, request)
        await asyncio.to_thread(session.stop_take)

    return routes
