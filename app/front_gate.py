"""Of Gradio's routes those that our page uses; the others are closed: uploads, files, proxies, its own API and docs.

ASGI, between the guard and the application. Our own routes pass. Knows no token.
"""

from __future__ import annotations

import json
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .guard_answers import Refusal, answer_json

_OURS = re.compile(r"/(?:v1|page)/.*|/(?:healthz|readyz|metrics)/?")
_SHOWN = re.compile(
    r"/|/config/?|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
    r"|/(?:assets|static)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+"
    r"|/gradio_api/queue/data"
)
_CALLED = ("/gradio_api/queue/join", "/gradio_api/run/predict")
_CALL_BYTES = 256 << 10  # the page's widgets send text and numbers
_NOT_HERE = Refusal(status=404, code="not_found", message="There is no such address here.", remedy="")
_TOO_LARGE = Refusal(
    status=413, code="too_large", message=f"The call has more than {_CALL_BYTES} bytes.", remedy="", hang_up=True
)
_NO_CALL = Refusal(
    status=400, code="bad_input", message="This is no call that the page makes.", remedy="Use the API under /v1."
)


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
        elif method == "POST" and path in _CALLED:
            await self._call(scope, receive, send)
        else:
            await answer_json(send, _NOT_HERE)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A call of the page's: JSON without files. Gradio would fetch what a file's path or address in it names."""
        body = b""
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > _CALL_BYTES:
                await answer_json(send, _TOO_LARGE)
                return
        try:
            fine = not _names_file(json.loads(body))
        except (ValueError, RecursionError):
            fine = False
        if not fine:
            await answer_json(send, _NO_CALL)
            return
        await self._app(scope, _replay(body, receive), send)


def _names_file(value: object) -> bool:
    """Whether there is an object with a path anywhere in it, as Gradio's FileData has one."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        if isinstance(found, dict):
            if "path" in found:
                return True
            waiting.extend(found.values())
        elif isinstance(found, list):
            waiting.extend(found)
    return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body again, then what follows it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
