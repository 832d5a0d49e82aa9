"""A request as the guard's rules see it: headers, cookies, query. Independent of the rules and of secrets."""

from __future__ import annotations

from urllib.parse import parse_qsl

from starlette.types import Scope

from .rules import client_key


class GuardedRequest:
    """One request. home: the page's path, as browsers see it.

    cross_origin: the Origin is an allowed page of another server.
    """

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.kind: str = scope["type"]
        self.method: str = scope.get("method", "GET")
        self.path: str = scope["path"]
        self.home: str = scope.get("root_path", "") + "/"
        self.scheme = "https" if scope.get("scheme") in ("https", "wss") else "http"
        client = scope.get("client")
        self.client = client_key(client[0] if client else None)
        self.query = parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True)
        hosts = self.headers("host")
        self.host = hosts[0] if len(hosts) == 1 else None
        self.origins = self.headers("origin")
        self.cross_origin = False

    def headers(self, name: str) -> list[str]:
        """All values of a header; `name` in lower case."""
        lower_name = name.encode()
        return [value.decode("latin-1").strip() for key, value in self.scope["headers"] if key.lower() == lower_name]

    def header(self, name: str) -> str:
        """The first value of a header, or ""."""
        return next(iter(self.headers(name)), "")

    def cookies(self, name: str) -> list[str]:
        """All values of a cookie."""
        pairs = [part.strip().partition("=") for line in self.headers("cookie") for part in line.split(";")]
        return [value for key, _, value in pairs if key == name]

    @property
    def bearer(self) -> str:
        """The token in the Authorization header, or ""."""
        scheme, _, token = self.header("authorization").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def body_bytes(self) -> int:
        """Content-Length, or 0 without a valid one."""
        length = self.header("content-length")
        return int(length) if length.isascii() and length.isdigit() and len(length) < 20 else 0

    @property
    def has_body(self) -> bool:
        """Whether anything may follow the header."""
        return self.body_bytes > 0 or bool(self.header("transfer-encoding"))

    @property
    def wants_page(self) -> bool:
        """Whether the client is a browser loading a page, not a program."""
        return "text/html" in self.header("accept") and not self.path.startswith("/v1/")

    @property
    def is_sign_in(self) -> bool:
        """Whether the token is in the URL or was posted with the form."""
        if self.kind != "http":
            return False
        return self.method == "POST" or (self.method == "GET" and any(name == "token" for name, _ in self.query))

    @property
    def from_other_site(self) -> bool:
        """A navigation begun by another site: the browser withholds the cookie."""
        other_site = self.header("sec-fetch-site") in ("cross-site", "same-site")
        return other_site and self.method == "GET" and self.header("sec-fetch-mode") == "navigate"

    def split_token(self, fields: list[tuple[str, str]]) -> tuple[str, list[tuple[str, str]]]:
        """The token among the fields, and the other fields."""
        token = next((value for name, value in fields if name == "token"), "")
        return token.strip(), [(name, value) for name, value in fields if name != "token"]
