"""Errors of the HTTP routes: each ZoetropeError as a status and one JSON shape, and so every other refusal.

`{"error": {"code", "message", "remedy"}}`. Knows no route. WebSockets map errors on their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from app.outputs.virtual_camera import NoVirtualCameraError
from app.session.table import UnknownSessionError
from app.worker.handle import BusyError
from app.worker.take import TakeRunsError
from pipelines.core.errors import ControlError, InputError, ModelError, TooLargeError, WorkerError, ZoetropeError

from .context import ApiContext


class UnauthorisedError(ZoetropeError):
    """No token was given, or one that does not hold."""


class UnknownJobError(ZoetropeError):
    """No render job of that name."""


class UnknownModelError(ZoetropeError):
    """A request names a model that this server does not have, or may not be asked for."""


class NotReadyError(ZoetropeError):
    """Asked too early, or of something that has ended otherwise."""


_TABLE: tuple[tuple[type[ZoetropeError], int, str], ...] = (  # the first that fits
    (UnknownSessionError, 404, "unknown_session"),
    (UnknownJobError, 404, "unknown_job"),
    (UnknownModelError, 404, "unknown_model"),
    (UnauthorisedError, 401, "unauthorised"),
    (NotReadyError, 409, "not_ready"),
    (TakeRunsError, 409, "already_running"),
    (NoVirtualCameraError, 409, "unavailable"),
    (BusyError, 503, "busy"),
    (ControlError, 422, "bad_control"),
    (TooLargeError, 413, "too_large"),
    (InputError, 400, "bad_input"),
    (WorkerError, 503, "worker"),
    (ModelError, 503, "worker"),
    (ZoetropeError, 500, "failed"),
)
_HTTP_CODES = {
    401: "unauthorised",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    408: "bad_input",
    413: "too_large",
    429: "busy",
    503: "busy",
}
CODES = tuple(dict.fromkeys((*(code for _, _, code in _TABLE), *_HTTP_CODES.values())))
"""Every code of an HTTP answer, those of the guard included."""


def status_and_code(error: ZoetropeError) -> tuple[int, str]:
    """The HTTP status and the code that `error` is told by."""
    return next((status, code) for kind, status, code in _TABLE if isinstance(error, kind))


def error_body(code: str, message: str, remedy: str = "") -> dict[str, dict[str, str]]:
    """The JSON shape of every refusal."""
    return {"error": {"code": code, "message": message, "remedy": remedy}}


def error_answer(error: ZoetropeError, retry_after_s: int) -> JSONResponse:
    """`error` as an answer; busy ones say when to try again."""
    status, code = status_and_code(error)
    headers: dict[str, str] = {}
    if code in ("busy", "worker"):
        headers["Retry-After"] = str(retry_after_s)
    if code == "unauthorised":
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error_body(code, error.message, error.remedy), status, headers)


def install_errors(app: fastapi.FastAPI, context: ApiContext) -> None:
    """Make `app` answer every ZoetropeError, refused request and unknown address in that shape."""

    @cache
    def documented() -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        paths: dict[str, dict[str, object]] = app.openapi()["paths"]
        return [(compile_path(path)[0], tuple(method.upper() for method in item)) for path, item in paths.items()]

    def allowed(path: str) -> tuple[str, ...]:
        """All methods of a path (RFC 9110, section 10.2.1); the framework names those of one route only."""
        return next((methods for pattern, methods in documented() if pattern.match(path)), ())

    async def ours(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ZoetropeError)
        return error_answer(error, context.table.retry_after_s)

    async def refused(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        code, message = validation_text(error.errors())
        return JSONResponse(error_body(code, message, "The OpenAPI document at /v1/openapi.json says what fits."), 422)

    async def other(request: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        code = _HTTP_CODES.get(error.status_code, "bad_input" if error.status_code < 500 else "failed")
        text = str(error.detail) or HTTPStatus(error.status_code).phrase
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = ", ".join(allowed(request.url.path))
        return JSONResponse(error_body(code, text), error.status_code, headers)

    app.add_exception_handler(ZoetropeError, ours)
    app.add_exception_handler(RequestValidationError, refused)
    app.add_exception_handler(HTTPException, other)


def validation_text(errors: object) -> tuple[str, str]:
    """Code and message of pydantic's list of errors: where, and what was wrong there; never the value itself."""
    assert isinstance(errors, list | tuple)
    if not errors:
        return "bad_input", "The request does not fit."
    first: Mapping[str, object] = errors[0]
    place = first.get("loc", ())
    assert isinstance(place, tuple)
    names = [str(part) for part in place if part not in ("body", "query", "path", "header")]
    code = "bad_control" if "controls" in names or "changes" in names else "bad_input"
    where = ".".join(names[:4]) or "body"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return code, f"{where}: {first.get('msg', 'does not fit')}{more}."
