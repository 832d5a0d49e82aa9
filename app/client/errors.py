"""What the client raises: refusals of a server, with its own words, and a server that cannot be reached."""

from __future__ import annotations

from pipelines.core.errors import ZoetropeError


class ServerError(ZoetropeError):
    """The server has refused. code: as in docs/api-http.md, for programs."""

    def __init__(self, code: str, message: str, remedy: str = "") -> None:
        super().__init__(message, remedy)
        self.code = code


class ServerBusyError(ServerError):
    """All places are taken. retry_after_s: when to ask again."""

    def __init__(self, message: str, remedy: str = "", retry_after_s: float = 5.0) -> None:
        super().__init__("busy", message, remedy)
        self.retry_after_s = retry_after_s


class RefusedControlError(ServerError):
    """A change of controls does not fit; nothing was changed."""


class UnauthorisedClientError(ServerError):
    """The token is missing or wrong."""


class GoneError(ServerError):
    """The session or job is not there any more."""


class UnreachableError(ZoetropeError):
    """There is no server at that address, or the connection was lost for longer than its session lives."""


def server_error(code: str, message: str, remedy: str = "", retry_after_s: float = 5.0) -> ServerError:
    """The error of that code."""
    if code == "busy":
        return ServerBusyError(message, remedy, retry_after_s)
    return _KINDS.get(code, ServerError)(code, message, remedy)


_KINDS: dict[str, type[ServerError]] = {
    "bad_control": RefusedControlError,
    "unauthorised": UnauthorisedClientError,
    "unknown_session": GoneError,
    "unknown_job": GoneError,
}
