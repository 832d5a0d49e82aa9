"""The path below which a reverse proxy shows the server (--root-path): its rule, and the middleware that takes it off.

In front of everything else, which then sees the paths of a server at /, whether the proxy strips the prefix or not,
and finds the prefix in `scope["root_path"]` for the addresses that it gives out. Plain ASGI; independent of the rules
of access.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.core.errors import InputError

_SEGMENT = re.compile(r"[A-Za-z0-9_~.-]*[A-Za-z0-9_~-][A-Za-z0-9_~.-]*")  # neither "." nor ".."
_TAKEN = frozenset(
    ("v1", "page", "healthz", "readyz", "metrics", "assets", "static", "config", "theme.css")
    + ("favicon.ico", "robots.txt", "manifest.json")
)


def checked_root_path(text: str) -> str:
    """'/zoetrope' of '/zoetrope/'; '' of '' and '/'. Raises InputError for what cannot be the path of a server."""
    path = text.strip().rstrip("/")
    first, *others = path.removeprefix("/").split("/")
    if not path:
        return ""
    if not path.startswith("/") or not all(_SEGMENT.fullmatch(segment) for segment in (first, *others)):
        raise InputError(
            f"--root-path {text!r} is not a path.",
            "Give the part between the proxy's host name and the page, e.g. /zoetrope, of letters, digits and -._~.",
        )
    if first.lower() in _TAKEN:
        raise InputError(
            f"--root-path cannot begin with /{first}: the server has routes of that name.",
            "Choose another path in the proxy's configuration, e.g. /zoetrope.",
        )
    return path


class RootPath:
    """ASGI middleware. root_path: as from `checked_root_path`, not empty."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path
        self._raw = root_path.encode("ascii")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path == self._root_path and scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            await self._add_slash(scope, send)  # the page's addresses are relative to /zoetrope/
            return
        if path.startswith(f"{self._root_path}/"):
            raw = scope.get("raw_path") or b""
            scope = {**scope, "path": path.removeprefix(self._root_path), "raw_path": raw.removeprefix(self._raw)}
        await self._app({**scope, "root_path": self._root_path}, receive, send)

    async def _add_slash(self, scope: Scope, send: Send) -> None:
        query = scope.get("query_string", b"")
        location = self._raw + b"/" + (b"?" + query if query else b"")
        headers = [(b"location", location), (b"content-length", b"0"), (b"cache-control", b"no-store")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
