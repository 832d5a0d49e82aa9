"""The client's errors: the server's refusals, with its messages, and an unreachable server."""

from __future__ import annotations

from pipelines.core.errors import ZoetropeError


class ServerError(ZoetropeError):
    """The server refused the request. code: machine-readable, see docs/api-http.md."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.code = code


class ServerBusyError(ServerError):
    """The server is at capacity. retry_after_s: when to retry."""

    def __init__(self, message: str, remedy: str = "", retry_after_s: float = 5.0) -> None:
        super().__init__("busy", message, remedy)
        self.retry_after_s = retry_after_s


class RefusedControlError(ServerError):
    """A control change is invalid; nothing was changed."""


class UnauthorisedClientError(ServerError):
    """The token is missing or wrong."""


class GoneError(ServerError):
    """The session or job no longer exists."""


class UnreachableError(ZoetropeError):
    """The server does not respond, or the connection was lost for longer than the session's grace period."""


def server_error(code: str, message: str, remedy: str = "", retry_after_s: float = 5.0) -> ServerError:
    """The error for an error code."""
    if code == "busy":
        return ServerBusyError(message, remedy, retry_after_s)
    return _KINDS.get(code, ServerError)(code, message, remedy)


_KINDS: dict[str, type[ServerError]] = {
    "bad_control": RefusedControlError,
    "unauthorised": UnauthorisedClientError,
    "unknown_session": GoneError,
    "unknown_job": GoneError,
}
