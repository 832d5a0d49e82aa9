"""Of Gradio's routes those that show our page; the others are closed: queue, uploads, files, proxies, its API and docs.

The page's events stay in the browser and ask our own routes, so nothing of Gradio is ever called. ASGI, between the
guard and the application. Knows no token.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from app.guard.answers import Refusal, answer_json

_OURS = re.compile(r"/(?:v1|page)/.*|/(?:healthz|readyz|metrics)/?")
_SHOWN = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/(?:assets|static)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"
)
_NOT_HERE = Refusal(status=404, code="not_found", message="There is no such address here.", remedy="")


class FrontGate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        path, method = scope.get("path", ""), scope.get("method")  # the lifespan has neither
        ours = scope["type"] != "http" or _OURS.fullmatch(path)
        if ours or (method in ("GET", "HEAD") and _SHOWN.fullmatch(path)):
            await self._app(scope, receive, send)
        else:
            await answer_json(send, _NOT_HERE)
