"""The guard's rules as pure functions: host names, origins, which routes check a session's token, body and rate limits.

Independent of ASGI and of secret values.
"""

from __future__ import annotations

import ipaddress
import re
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipelines.core.errors import InputError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::", "")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
MIN_TOKEN_CHARACTERS = 12
_PORTS = {"http": 80, "https": 443}
_SESSION_ROUTE = re.compile(r"/v1/sessions/[A-Za-z0-9_-]{1,64}((?:/[A-Za-z0-9_-]{1,64}){0,3})/?")
_SESSION_SOCKETS = ("/stream",)
_SIGNED_PARTS = ("/mjpeg", "/picture", "/snapshot")  # for <img>, which cannot send headers
_PICTURES = ("/v1/generate",)
_UPLOADS = ("/v1/jobs",)
_OPENING_ROUTES = ("/v1/sessions", "/v1/whip", "/v1/generate", "/v1/jobs")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardOptions:
    """Who may use this server. token: None requires none (loopback only).

    hosts: allowed Host headers, "name:port" ("*" as the port for any), lower case, IPv6 in brackets. any_address: any
    IP address with the right port is allowed too, for a server that listens on all of them: DNS rebinding needs a name.
    origins: pages of other servers that may call this one, "scheme://host[:port]". per_minute: sessions, and wrong
    tokens, per client address. body_bytes, upload_bytes, text_bytes: of a body with a picture, with a video, any other.
    body_s: how long to wait for one.
    """

    port: int
    hosts: frozenset[str]
    token: str | None = None
    token_is_new: bool = False
    any_address: bool = False
    origins: frozenset[str] = frozenset()
    body_bytes: int = 4 << 20
    text_bytes: int = 256 << 10
    upload_bytes: int = 2 << 30
    body_s: float = 30.0
    body_bytes_per_s: float = 4096.0
    sessions_per_minute: int = 60
    guesses_per_minute: int = 10

    def __post_init__(self) -> None:
        if self.token is not None:
            check_token(self.token)
        for name in ("body_bytes", "text_bytes", "upload_bytes", "body_s", "body_bytes_per_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give more than 0")
        for name in ("sessions_per_minute", "guesses_per_minute"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")


def check_token(token: str) -> None:
    """Raise InputError for a server token that is too short or invalid in a header; never shows its value."""
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise InputError(
            f"--token has {len(token)} characters.",
            f"Give {MIN_TOKEN_CHARACTERS} or more, or leave it out with another --host: one is generated and printed.",
        )
    if not all("!" <= character <= "~" for character in token):
        raise InputError("--token has a space or a non-ASCII character.", "Use letters, digits and punctuation.")


def is_loopback(host: str) -> bool:
    """Whether a listening address is reachable from this machine only."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def host_pair(text: str, default_port: int) -> tuple[str, int] | None:
    """Host header or netloc -> (lower-case name without brackets, port); None if it is neither name nor address."""
    match = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", text)
    if match is None:
        return None
    name = match[1].lower().strip("[]").rstrip(".")
    if match[1][0] != "[" and not _NAME.fullmatch(name):
        return None
    return name, int(match[2]) if match[2] else default_port


def host_allowed(options: GuardOptions, host: str, scheme: str) -> bool:
    """Whether the Host is ours: against DNS rebinding, where a foreign name resolves to this machine."""
    pair = host_pair(host, _PORTS[scheme])
    if pair is None:
        return False
    name, port = pair
    shown = f"[{name}]" if ":" in name else name
    if f"{shown}:{port}" in options.hosts or f"{shown}:*" in options.hosts:
        return True
    return options.any_address and port == options.port and _is_address(name)


def origin_allowed(options: GuardOptions, origin: str, host: str, scheme: str) -> bool:
    """Whether a page of `origin` may call us: our own pages (same host and port as the Host header), or an allowed one.

    scheme: "http" or "https", of the request. A proxy may terminate TLS in front of http; the reverse is refused.
    """
    if origin.lower() in options.origins:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:  # brackets without an address, or letters that turn into slashes
        return False
    if parts.scheme not in _PORTS or parts.path or parts.query or (scheme == "https" and parts.scheme != "https"):
        return False
    default = _PORTS[parts.scheme]
    theirs = host_pair(parts.netloc, default)
    return theirs is not None and theirs == host_pair(host, default)


def checks_session_token(kind: str, method: str, path: str, *, bearer: bool, signed: bool) -> bool:
    """Whether the route of `path` belongs to a session and checks the request's session token itself.

    kind: "http" or "websocket", which sends the token in its first message. bearer: there is a Bearer header. signed:
    there is a `token` in the query. OPTIONS needs none: it reveals nothing about the session.
    """
    match = _SESSION_ROUTE.fullmatch(path)
    if match is None:
        return False
    part = match[1]
    if kind == "websocket":
        return part in _SESSION_SOCKETS
    return bearer or (signed and method in ("GET", "HEAD") and part in _SIGNED_PARTS) or method == "OPTIONS"


def body_cap(options: GuardOptions, path: str) -> int:
    """Maximum body size of a request to `path`, bytes."""
    path = path.rstrip("/")
    if path in _UPLOADS:
        return options.upload_bytes
    return options.body_bytes if path in _PICTURES else min(options.text_bytes, options.body_bytes)


def of_session(path: str) -> bool:
    """Whether `path` belongs to a session, whose token its route looks at before it reads a body."""
    return _SESSION_ROUTE.fullmatch(path) is not None


def opens_session(method: str, path: str) -> bool:
    """Whether the request would open a session or start a job."""
    return method == "POST" and path.rstrip("/") in _OPENING_ROUTES


def client_key(address: str | None) -> str:
    """What counts as one client: an IPv4 address, or an IPv6 /64 network (usually one customer's)."""
    try:
        parsed = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return address or "?"
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))
    return str(parsed)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Buckets:
    """Token buckets, one per client: a burst of `per_minute`, then that rate. Keeps the 4096 most recent clients."""

    _CLIENTS = 4096

    def __init__(self, per_minute: int) -> None:
        self._full = float(per_minute)
        self._levels: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> level, time in s

    def wait_s(self, client: str, now_s: float) -> float:
        """Seconds until this client's next token; 0: now. Takes none."""
        level = self._level(client, now_s)
        return 0.0 if level >= 1 else (1 - level) * 60 / self._full

    def take(self, client: str, now_s: float) -> float:
        """Like `wait_s`, and takes a token if it is 0."""
        wait_s = self.wait_s(client, now_s)
        if wait_s == 0:
            self._levels[client] = (self._level(client, now_s) - 1, now_s)
            self._levels.move_to_end(client)
            if len(self._levels) > self._CLIENTS:
                self._levels.popitem(last=False)
        return wait_s

    def _level(self, client: str, now_s: float) -> float:
        level, then_s = self._levels.get(client, (self._full, now_s))
        return min(self._full, level + max(0.0, now_s - then_s) * self._full / 60)
