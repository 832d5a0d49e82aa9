"""All routes of the API, in one list, and the address of the OpenAPI document. Knows what there is, does nothing.

The page is mounted after these: what no route here answers goes to it.
"""

from __future__ import annotations

from collections.abc import Callable

import fastapi
from fastapi import APIRouter

from . import asyncapi, generate, health, jobs, metrics, outputs, sessions, takes
from .context import ApiContext
from .errors import install_errors
from .stream import mjpeg
from .stream import socket as stream_socket
from .webrtc import routes as whip


def _whip(context: ApiContext) -> APIRouter:
    return whip.router(context, context.webrtc)


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
"""One line for each route module."""

OPENAPI_URL = "/v1/openapi.json"


def new_application() -> fastapi.FastAPI:
    """An application without pages of documentation (they would fetch scripts from elsewhere)."""
    return fastapi.FastAPI(
        title="Zoetrope",
        version="1",
        description="Live generated video: sessions, frames, pictures and render jobs.",
        openapi_url=OPENAPI_URL,
        docs_url=None,
        redoc_url=None,
    )


def include_all(app: fastapi.FastAPI, context: ApiContext) -> None:
    """Add every route, and the one shape of errors. To be called before the page is mounted."""
    install_errors(app, context)
    for router in ROUTERS:
        app.include_router(router(context))
