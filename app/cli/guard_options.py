"""The guard's command-line options, and the URLs that open the page. Independent of ASGI."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from app.guard.rules import LOOPBACK_NAMES, WILDCARDS, GuardOptions, check_token, host_pair, is_loopback
from app.guard.tokens import new_token
from app.server.tls import add_tls_options, own_addresses
from pipelines.core.errors import InputError

TOKEN_VARIABLE = "ZOETROPE_TOKEN"
_ORIGIN = re.compile(r"https?://[^/?#\s@]+")


class _RemovedOption(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        parser.error(
            f"{option_string} was removed: --host with another address now requires a token from every client, "
            "which is generated and printed if --token is not given."
        )


def add_guard_options(parser: argparse.ArgumentParser) -> None:
    """Add --token, --allow-host, --allow-origin, --root-path and the TLS options."""
    group = parser.add_argument_group(
        "access", "Without --host only this machine can connect, and no token is required."
    )
    group.add_argument(
        "--token",
        metavar="TEXT",
        help=f"require this token; preferably set the variable {TOKEN_VARIABLE}, which other users of the machine "
        "cannot read (default unless --host is local: a new token at each start)",
    )
    group.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another name of this server, e.g. behind a proxy; may be repeated",
    )
    group.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="another site whose pages may use the API, e.g. https://example.org; may be repeated",
    )
    group.add_argument(
        "--root-path",
        default="",
        metavar="/PATH",
        help="the path below which a reverse proxy shows this server, e.g. /zoetrope (default: none)",
    )
    group.add_argument("--allow-remote", action=_RemovedOption, nargs=0, help=argparse.SUPPRESS)
    add_tls_options(parser)


def guard_options(options: argparse.Namespace, host: str, port: int) -> GuardOptions:
    """The guard's settings. host, port: the listening address, port never 0. Raises InputError.

    On a host that other machines can reach a token is mandatory: one is generated if none was given.
    """
    token = options.token if options.token is not None else os.environ.get(TOKEN_VARIABLE) or None
    if token is not None:
        check_token(token)
    new = token is None and not is_loopback(host)
    wildcard = host in WILDCARDS
    names = [*LOOPBACK_NAMES, *(_own_names() if wildcard else [host])]
    hosts = {_shown(name, str(port)) for name in names} | {_allowed_host(text) for text in options.allow_host}
    return GuardOptions(
        port=port,
        hosts=frozenset(hosts),
        token=new_token() if new else token,
        token_is_new=new,
        any_address=wildcard,
        origins=frozenset(_allowed_origin(text) for text in options.allow_origin),
    )


def links(options: GuardOptions, host: str, *, tls: bool, root_path: str = "") -> list[str]:
    """The URLs for a browser, the first for this machine, each with the token if there is one.

    For the terminal and `webbrowser.open`, never for a log.
    """
    shown = ["127.0.0.1" if host != "::" else "::1", *own_addresses()] if host in WILDCARDS else [host]
    query = f"{root_path}/?token={quote(options.token, safe='')}" if options.token is not None else f"{root_path}/"
    return [f"http{'s' if tls else ''}://{_shown(name, str(options.port))}{query}" for name in shown]


def _own_names() -> list[str]:
    name = socket.gethostname().lower()
    return [name] if "." in name else [name, f"{name}.local"]


def _shown(name: str, port: str) -> str:
    return f"[{name.lower()}]:{port}" if ":" in name else f"{name.lower()}:{port}"


def _allowed_host(text: str) -> str:
    pair = host_pair(text.strip(), 0)
    if pair is None:
        raise InputError(f"--allow-host {text!r} is not a name.", "Give NAME or NAME:PORT, without http://.")
    name, port = pair
    return _shown(name, str(port) if port else "*")


def _allowed_origin(text: str) -> str:
    origin = text.strip().rstrip("/").lower()
    if not _ORIGIN.fullmatch(origin):
        raise InputError(f"--allow-origin {text!r} is not an origin.", "Give SCHEME://HOST or SCHEME://HOST:PORT.")
    return origin
