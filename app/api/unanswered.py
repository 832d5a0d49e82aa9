"""What no route answers, and what the framework answers by itself, in the API's one shape of errors.

An unknown address is 404; a known one with another method is 405 with the methods that it has. Independent of the
routes: it asks the router that has them.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

import fastapi
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Match, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from .errors import error_body, http_code

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_FOLDERS = ("/v1", "/page")
_ADDRESSES = ("/healthz", "/readyz", "/metrics")
_JSON = b"application/json"


def answer_the_rest(app: fastapi.FastAPI) -> None:
    """Add what answers for the API's addresses that no route has; call it after the routes and before the page."""
    rest = _Rest(tuple(app.router.routes))
    app.router.routes += [Mount(folder, rest) for folder in _FOLDERS]
    app.router.routes += [Route(address, rest, include_in_schema=False) for address in _ADDRESSES]
    app.add_middleware(OneShape)


class _Rest:
    """ASGI application. routes: those that did not match as a whole."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        methods = [method for method in _METHODS if self._has(scope, method)]
        if methods:
            text = f"{scope['method'][:20]} is not possible at this address."
            body = error_body(http_code(405), text, f"Use {' or '.join(methods)}.")
            answer = JSONResponse(body, 405, {"Allow": ", ".join(methods)})
        else:
            remedy = "The addresses are in the OpenAPI document at /v1/openapi.json."
            answer = JSONResponse(error_body(http_code(404), "There is no such address.", remedy), 404)
        await answer(scope, receive, send)

    def _has(self, scope: Scope, method: str) -> bool:
        root_path = scope.get("app_root_path", scope.get("root_path", ""))
        asked = {**scope, "method": method, "root_path": root_path}
        return any(route.matches(asked)[0] is Match.FULL for route in self._routes)


class OneShape:
    """ASGI middleware: a refusal that is no JSON, as the framework's file responses have them, gets the API's shape."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        replaced = False

        async def send_in_shape(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and _shapeless(message):
                replaced = True
                await refusal_of(message)(scope, receive, send)
            elif not replaced:
                await send(message)

        await self._app(scope, receive, send_in_shape)


def refusal_of(start: Message) -> JSONResponse:
    """A response in the API's shape with the status and headers of `start`, of which the body is not used."""
    status = int(start["status"])
    kept = {name.decode("latin-1"): value.decode("latin-1") for name, value in start.get("headers", [])}
    headers = {name: value for name, value in kept.items() if name.lower() not in ("content-type", "content-length")}
    return JSONResponse(error_body(http_code(status), f"{HTTPStatus(status).phrase}."), status, headers)


def _shapeless(start: Message) -> bool:
    kind = next((value for name, value in start.get("headers", []) if name.lower() == b"content-type"), b"")
    return start["status"] >= 400 and not kind.startswith(_JSON)
