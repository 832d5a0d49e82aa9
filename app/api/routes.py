"""The list of all API routers, and the path of the OpenAPI document.

The page is mounted after these; what none of them matches is answered by unanswered.py, and never reaches the page.
"""

from __future__ import annotations

from collections.abc import Callable

import fastapi
from fastapi import APIRouter

from . import asyncapi, generate, health, jobs, metrics, outputs, sessions, takes
from .context import ApiContext
from .errors import install_errors
from .openapi import OPENAPI_URL, Application
from .stream import mjpeg
from .stream import socket as stream_socket
from .unanswered import answer_the_rest
from .webrtc import routes as whip


def _whip(context: ApiContext) -> APIRouter:
    return whip.router(context, context.webrtc)


__all__ = ("OPENAPI_URL", "ROUTERS", "include_all", "new_application")

ROUTERS: tuple[Callable[[ApiContext], APIRouter], ...] = (
    health.router,
    metrics.router,
    sessions.router,
    mjpeg.router,
    generate.router,
    jobs.router,
    stream_socket.router,
    _whip,
    takes.router,
    outputs.router,
    asyncapi.router,
)
"""One entry per route module."""


def new_application() -> fastapi.FastAPI:
    """An application without routes."""
    return Application()


def include_all(app: fastapi.FastAPI, context: ApiContext, *more: APIRouter) -> None:
    """Add every router, `more` of them, and the error handlers. Must be called before the page is mounted."""
    install_errors(app, context)
    for router in (*(make(context) for make in ROUTERS), *more):
        app.include_router(router)
    answer_the_rest(app)
