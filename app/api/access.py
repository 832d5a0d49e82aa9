"""Authorisation for a session's HTTP routes, its URL paths, and running blocking calls off the event loop.

A session's own token authorises a request: in a Bearer header, or as a short-lived signature in the URL where an HTML
element cannot send headers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import fastapi
from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.guard.tokens import sign, verify
from app.session.session import Session

from .context import ApiContext
from .errors import UnauthorisedError

T = TypeVar("T")
MJPEG = "mjpeg"
_SIGNED_S = 60.0
_WITH_BODY = {"POST", "PUT", "PATCH"}


async def off_loop(context: ApiContext, call: Callable[..., T], *arguments: object, user: str = "") -> T:
    """Run `call` on a codec thread, when it is the user's turn, and return its result.

    user: a session's id for work on its pictures and changes; "" for what belongs to no session.
    """
    lane = context.turns.of(user)
    return await asyncio.get_running_loop().run_in_executor(lane, partial(call, *arguments))


def bearer(request: fastapi.Request) -> str:
    """The token in the Authorization header. Raises UnauthorisedError if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorisedError("No session token was given.", "Send the header: Authorization: Bearer TOKEN.")
    return token.strip()


def session_of(context: ApiContext, session_id: str, request: fastapi.Request) -> Session:
    """The session that the request's token authorises; resets its idle timer.

    Raises UnauthorisedError if the token is wrong, whether the session exists or not, and UnknownSessionError if it is
    right but the session has ended.
    """
    token = bearer(request)
    if not context.table.knows(session_id, token):
        raise UnauthorisedError("There is no such session, or the token is wrong.", "Open one: POST /v1/sessions.")
    session = context.table.get(session_id)
    session.touch()
    return session


def session_route(context: ApiContext) -> type[APIRoute]:
    """A class of routes that look at a session's token before they read a body: who has none costs nothing."""

    class SessionRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                session_of(context, str(request.path_params["session_id"]), request)
                return await handle(request)

            takes_body = bool(_WITH_BODY & set(self.methods or ()))
            return checked if takes_body and "{session_id}" in self.path else handle

    return SessionRoute


def session_path(context: ApiContext, session_id: str, part: str = "") -> str:
    """The path of a session, or of a resource below it, as clients see it."""
    return f"{context.root_path}/v1/sessions/{session_id}{f'/{part}' if part else ''}"


def signed_path(context: ApiContext, session: Session, part: str) -> str:
    """The path of a resource of the session, with a signature that authorises it for a minute."""
    signed = sign(session.token.encode(), f"{part} {session.id}", _SIGNED_S, time.monotonic())
    return f"{session_path(context, session.id, part)}?token={signed}"


def session_signed(context: ApiContext, session_id: str, part: str, token: str) -> Session:
    """The session of a `signed_path`. Raises UnauthorisedError for an invalid or expired token or an unknown id."""
    known = {session.id: session for session in context.table.sessions}
    session = known.get(session_id)
    secret = session.token.encode() if session is not None else b"-" * 32
    if not verify(secret, f"{part} {session_id}", token, time.monotonic()) or session is None:
        raise UnauthorisedError(
            "The token in this URL is wrong or has expired.", "Get a new URL from GET /v1/sessions/ID."
        )
    return session
