"""Allows only those of Gradio's routes that load our page; blocks its queue, uploads, files, proxies, API and docs.

The page's events stay in the browser and use our own routes, so none of Gradio's are needed. ASGI middleware between
the guard and the application. Independent of tokens.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from app.guard.answers import Refusal, answer_json

_OURS = re.compile(r"/(?:v1|page)/.*|/(?:healthz|readyz|metrics)/?")
_PAGE = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/(?:assets|static)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"
)
_NOT_FOUND = Refusal(status=404, code="not_found", message="There is no such page.", remedy="")


class FrontGate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        path, method = scope.get("path", ""), scope.get("method")  # the lifespan scope has neither
        ours = scope["type"] != "http" or _OURS.fullmatch(path)
        if ours or (method in ("GET", "HEAD") and _PAGE.fullmatch(path)):
            await self._app(scope, receive, send)
        else:
            await answer_json(send, _NOT_FOUND)
