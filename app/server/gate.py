"""Allows only those of Gradio's routes that load our page; blocks its queue, uploads, files, proxies, API and docs.

The page's events stay in the browser and use our own routes, so none of Gradio's are needed. ASGI middleware between
the guard and the application. Independent of tokens.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.guard.answers import Refusal, answer_json

_OURS = re.compile(r"/(?:v1|page)/.*|/(?:healthz|readyz|metrics)/?")
_PAGE = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/(?:assets|static)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"
)
_NOT_FOUND = Refusal(status=404, code="not_found", message="There is no such page.", remedy="")
_FAILED = Refusal(status=500, code="failed", message="The page failed.", remedy="The terminal of the server says more.")


class FrontGate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        path, method = scope.get("path", ""), scope.get("method")  # the lifespan scope has neither
        if scope["type"] != "http" or _OURS.fullmatch(path):
            await self._app(scope, receive, send)
        elif method in ("GET", "HEAD") and _PAGE.fullmatch(path):
            await self._app(scope, receive, in_one_shape(send))
        else:
            await answer_json(send, _NOT_FOUND)


def in_one_shape(send: Send) -> Send:
    """`send` for the page's files: a refusal of Gradio's, in whichever shape, becomes one of the API's."""
    refused = False

    async def send_in_shape(message: Message) -> None:
        nonlocal refused
        if message["type"] == "http.response.start" and message["status"] >= 400:
            refused = True
            await answer_json(send, _NOT_FOUND if message["status"] < 500 else _FAILED)
        elif not refused:
            await send(message)

    return send_in_shape
