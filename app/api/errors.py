"""Errors of the HTTP routes: maps every exception and every other error response to a status and one JSON shape.

`{"error": {"code", "message", "remedy"}}`. Independent of the routes. WebSockets map errors themselves.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping
from http import HTTPStatus

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from app.outputs.virtual_camera import NoVirtualCameraError
from app.session.table import UnknownSessionError
from app.worker.handle import BusyError
from app.worker.take import TakeRunsError
from pipelines.core.errors import ControlError, InputError, ModelError, TooLargeError, WorkerError, ZoetropeError

from .context import ApiContext
from .told import told


class UnauthorisedError(ZoetropeError):
    """The token is missing or invalid."""


class UnknownJobError(ZoetropeError):
    """There is no render job with that id."""


class UnknownModelError(ZoetropeError):
    """A request names a model that this server does not have or does not offer."""


class NotReadyError(ZoetropeError):
    """The resource is not finished yet, or did not finish successfully."""


_TABLE: tuple[tuple[type[ZoetropeError], int, str], ...] = (  # the first match wins
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
_log = logging.getLogger(__name__)
CODES = tuple(dict.fromkeys((*(code for _, _, code in _TABLE), *_HTTP_CODES.values())))
"""Every error code of an HTTP response, including the guard's."""


def status_and_code(error: ZoetropeError) -> tuple[int, str]:
    """The HTTP status and error code of `error`."""
    return next((status, code) for kind, status, code in _TABLE if isinstance(error, kind))


def error_body(code: str, message: str, remedy: str = "") -> dict[str, dict[str, str]]:
    """The JSON shape of every error response."""
    return {"error": {"code": code, "message": told(message), "remedy": told(remedy)}}


def error_answer(error: ZoetropeError, retry_after_s: int) -> JSONResponse:
    """`error` as a response; with Retry-After if the server is busy."""
    status, code = status_and_code(error)
    headers: dict[str, str] = {}
    if code in ("busy", "worker"):
        headers["Retry-After"] = str(retry_after_s)
    if code == "unauthorised":
        headers["WWW-Authenticate"] = "Bearer"
    if status == 413:
        headers["Connection"] = "close"  # the rest of the body is not read
    return JSONResponse(error_body(code, error.message, error.remedy), status, headers)


def install_errors(app: fastapi.FastAPI, context: ApiContext) -> None:
    """Make `app` respond in that shape to every ZoetropeError, validation error and HTTPException."""

    async def zoetrope_error(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ZoetropeError)
        return error_answer(error, context.table.retry_after_s)

    async def invalid_request(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        code, message = validation_text(error.errors())
        return JSONResponse(error_body(code, message, "See the OpenAPI document at /v1/openapi.json."), 422)

    async def http_error(_: fastapi.Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        text = str(error.detail) or HTTPStatus(error.status_code).phrase
        return JSONResponse(error_body(http_code(error.status_code), text), error.status_code, error.headers)

    app.add_exception_handler(ZoetropeError, zoetrope_error)
    app.add_exception_handler(RequestValidationError, invalid_request)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(OSError, system_error)
    app.add_exception_handler(Exception, unexpected_error)


async def system_error(request: fastapi.Request, error: Exception) -> JSONResponse:
    """500 for what the operating system refuses, as on a full disk: its reason, without the file's place."""
    assert isinstance(error, OSError)
    _log.warning("%s %s: %s", request.method, request.scope["path"], error)
    reason = error.strerror or type(error).__name__
    return JSONResponse(error_body("failed", f"The server's system refused it: {reason}.", _remedy(error)), 500)


async def unexpected_error(_: fastapi.Request, error: Exception) -> JSONResponse:
    """500 for a fault of the server's own. The framework raises it again, so that the terminal has the traceback."""
    text = f"The server failed ({type(error).__name__})."
    return JSONResponse(error_body("failed", text, "The terminal of the server says more; please report it."), 500)


def http_code(status: int) -> str:
    """The error code of a status that no exception of ours stands for."""
    return _HTTP_CODES.get(status, "bad_input" if status < 500 else "failed")


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Delete jobs, recordings or takes, or make room on the disk of the server's data folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "The server's data folder must be writable: choose another with --data."
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "The server has too many files open: try again later."
    return "Look at the server's data folder (--data) and its terminal, then try again."


def validation_text(errors: object) -> tuple[str, str]:
    """Error code and message from pydantic's error list: the field and what is wrong with it, never its value."""
    assert isinstance(errors, list | tuple)
    if not errors:
        return "bad_input", "The request is invalid."
    first: Mapping[str, object] = errors[0]
    location = first.get("loc", ())
    assert isinstance(location, tuple)
    names = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    code = "bad_control" if "controls" in names or "changes" in names else "bad_input"
    where = ".".join(names[:4]) or "body"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return code, f"{where}: {first.get('msg', 'is invalid')}{more}."
