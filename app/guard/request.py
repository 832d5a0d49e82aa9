"""A request as the guard's rules look at it: header, cookie, query. Knows no rule and no secret."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.types import Scope

from .rules import client_key


class GuardedRequest:
    """What the rules look at. foreign_page: the Origin is an allowed one of another server."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.kind: str = scope["type"]
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self.scheme = "https" if scope.get("scheme") in ("https", "wss") else "http"
        client = scope.get("client")
        self.client = client_key(client[0] if client else None)
        self.query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        hosts = self.headers("host")
        self.host = hosts[0] if len(hosts) == 1 else None
        self.origins = self.headers("origin")
        self.foreign_page = False

    def headers(self, name: str) -> list[str]:
        """All headers of a (lower-case) name."""
        wanted = name.encode()
        return [value.decode("latin-1").strip() for key, value in self.scope["headers"] if key.lower() == wanted]

    def header(self, name: str) -> str:
        """The first header of a name, or ""."""
        return next(iter(self.headers(name)), "")

    def cookies(self, name: str) -> list[str]:
        """The values of all cookies of a name."""
        pairs = [part.strip().partition("=") for line in self.headers("cookie") for part in line.split(";")]
        return [value for key, _, value in pairs if key == name]

    @property
    def bearer(self) -> str:
        """The token of the Authorization header, or ""."""
        scheme, _, token = self.header("authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def body_bytes(self) -> int:
        """What the client says, 0 where it does not."""
        length = self.header("content-length")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0

    @property
    def wants_page(self) -> bool:
        """A browser that shows what comes, not a program."""
        return "text/html" in self.header("accept") and not self.path.startswith("/v1/")

    @property
    def asks_to_enter(self) -> bool:
        """Shows the token in the address, or has filled in the form."""
        if self.kind != "http":
            return False
        return self.method == "POST" or (self.method == "GET" and any(name == "token" for name, _ in self.query))

    @property
    def began_elsewhere(self) -> bool:
        """A visit that began on a page of another site: the browser keeps the cookie back."""
        other_site = self.header("sec-fetch-site") in ("cross-site", "same-site")
        return other_site and self.method == "GET" and self.header("sec-fetch-mode") == "navigate"

    def entry(self, fields: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
        """The token among the fields, and the others."""
        given = next((value for name, value in fields if name == "token"), "")
        return given.strip(), [(name, value) for name, value in fields if name != "token"]
