"""Takes over HTTP: begin and end the recording of a session's own take. Knows no file of it: names only."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from pydantic import Field

from app.session import Session
from app.takes.store import TakeStore

from .access import off_loop, session_of
from .context import ApiContext
from .schema import Strict
from .sessions import BUSY, REFUSALS, SESSION_TOKEN, UNFIT


class TakeView(Strict):
    """A take that is being written."""

    take: str = Field(description="Its name below the server's data folder: zoetrope render --take DATA/takes/NAME.")


def router(context: ApiContext) -> APIRouter:
    """The routes under /v1/sessions/{id}/take."""
    routes = APIRouter(prefix="/v1", tags=["takes"], dependencies=[Depends(SESSION_TOKEN)])
    store = TakeStore(context.data / "takes")

    def begin(session: Session) -> TakeView:
        folder = store.create()
        session.start_take(folder, store.may_grow)
        return TakeView(take=folder.name)

    @routes.post(
        "/sessions/{session_id}/take",
        status_code=201,
        operation_id="start_take",
        responses={**REFUSALS, **UNFIT, **BUSY},
    )
    async def start_take(session_id: str, request: Request) -> TakeView:
        """Record from now on, with a fresh stream of the same controls. Ends with the session at the latest."""
        return await off_loop(context, begin, session_of(context, session_id, request))

    @routes.delete(
        "/sessions/{session_id}/take",
        status_code=204,
        operation_id="stop_take",
        responses={**REFUSALS, **UNFIT},
    )
    async def stop_take(session_id: str, request: Request) -> None:
        """End the take and wait until it is written; without one nothing happens."""
        session = session_of(context, session_id, request)
        await off_loop(context, session.stop_take)

    return routes
