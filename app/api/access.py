"""Who may use a session's routes over HTTP, its addresses, and calls that would block the event loop.

A session's own token authorises it: in a Bearer header, or signed and short-lived in the address where a browser's
element cannot send headers. Knows no JSON.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import fastapi

from app.guard.tokens import sign, verify
from app.session.session import Session

from .context import ApiContext
from .errors import UnauthorisedError

T = TypeVar("T")
MJPEG = "mjpeg"
_SIGNED_S = 60.0


async def off_loop(context: ApiContext, call: Callable[..., T], *arguments: object) -> T:
    """The result of `call`, made on a thread of `context.codecs`."""
    return await asyncio.get_running_loop().run_in_executor(context.codecs, partial(call, *arguments))


def bearer(request: fastapi.Request) -> str:
    """The token of the Authorization header. Raises UnauthorisedError without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorisedError("No session token was given.", "Send the header: Authorization: Bearer TOKEN.")
    return token.strip()


def session_of(context: ApiContext, session_id: str, request: fastapi.Request) -> Session:
    """The session that the request's token authorises; it counts as used.

    Raises UnauthorisedError for who does not know the token, whether there is such a session or not, and
    UnknownSessionError for who knows it and comes when the session has ended.
    """
    token = bearer(request)
    if not context.table.knows(session_id, token):
        raise UnauthorisedError("There is no such session, or the token is wrong.", "Open one: POST /v1/sessions.")
    session = context.table.get(session_id)
    session.touch()
    return session


def session_path(session_id: str, part: str = "") -> str:
    """The address of a session, or of a part of it."""
    return f"/v1/sessions/{session_id}{f'/{part}' if part else ''}"


def signed_path(session: Session, part: str) -> str:
    """The address of a part of the session that proves by itself, for a minute, who may open it."""
    signed = sign(session.token.encode(), f"{part} {session.id}", _SIGNED_S, time.time())
    return f"{session_path(session.id, part)}?token={signed}"


def session_signed(context: ApiContext, session_id: str, part: str, token: str) -> Session:
    """The session of a `signed_path`. Raises UnauthorisedError for a wrong or late token, also for unknown sessions."""
    known = {session.id: session for session in context.table.sessions}
    session = known.get(session_id)
    secret = session.token.encode() if session is not None else b"-" * 32
    if not verify(secret, f"{part} {session_id}", token, time.time()) or session is None:
        raise UnauthorisedError(
            "The token of this address is wrong or has expired.", "Ask GET /v1/sessions/ID for a new address."
        )
    return session
