"""Options of `zoetrope live` for outputs and controllers: pushes, quotas, ICE servers, OSC and MIDI.

Turns them into validated settings. Starts nothing; loads nothing heavy.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.core.errors import InputError

if TYPE_CHECKING:
    from app.api.context import ApiLimits
    from app.controllers.opening import ControllerOptions
    from app.outputs.push_hosts import PushHosts
    from app.webrtc.options import WebRtcOptions

OSC_PORT = 9000
_MIN_GB = 1 / 16
_GB = 1 << 30


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add --push-host, --take-quota-gb, --recording-quota-gb, --ice-server, --osc, --midi and --control-map."""
    group = parser.add_argument_group("outputs and controllers", "docs/outputs.md describes them.")
    group.add_argument(
        "--push-host",
        action="append",
        default=[],
        metavar="HOST[:PORT]",
        help="a host that clients may push to, * for any; may be repeated (default: any if only this machine can "
        "connect and no token is required, else none)",
    )
    for name, what in (("take", "takes"), ("recording", "recordings")):
        group.add_argument(
            f"--{name}-quota-gb",
            type=float,
            default=10.0,
            metavar="GB",
            help=f"maximum size of all {what} in GiB; the oldest are deleted (default 10)",
        )
    group.add_argument(
        "--ice-server",
        action="append",
        default=[],
        metavar="URL[,USER,PASSWORD]",
        help="a STUN or TURN server for WebRTC, e.g. stun:stun.example.org:3478; may be repeated",
    )
    group.add_argument(
        "--osc",
        nargs="?",
        type=int,
        const=OSC_PORT,
        metavar="PORT",
        help=f"take control changes by OSC on 127.0.0.1 for the most recent session (default port {OSC_PORT})",
    )
    group.add_argument(
        "--midi",
        nargs="?",
        const="",
        metavar="PORT NAME",
        help="take control changes from a MIDI input, by default the first; needs --control-map",
    )
    group.add_argument("--control-map", type=Path, metavar="FILE", help="maps OSC or MIDI addresses to controls")


def push_hosts(options: argparse.Namespace, *, private: bool) -> PushHosts:
    """private: only this machine can connect, and no token is required. Raises InputError."""
    from app.outputs.push_hosts import PushHosts

    return PushHosts.of(options.push_host, private=private)


def api_limits(options: argparse.Namespace) -> ApiLimits:
    """The API's limits with the quotas given. Raises InputError."""
    from app.api.context import ApiLimits

    for name in ("take", "recording"):
        given = getattr(options, f"{name}_quota_gb")
        if not _MIN_GB <= given <= 1 << 20:  # also refuses NaN
            raise InputError(f"--{name}-quota-gb cannot be {given:g}.", f"Give {_MIN_GB:g} or more.")
    return ApiLimits(take_bytes=int(options.take_quota_gb * _GB), recording_bytes=int(options.recording_quota_gb * _GB))


def webrtc_options(options: argparse.Namespace, *, private: bool) -> WebRtcOptions:
    """WebRTC options with the ICE servers given. private: of `push_hosts`. Raises InputError, without passwords."""
    from app.webrtc.options import IceServer, WebRtcOptions

    servers = []
    for text in options.ice_server:
        url, *credentials = text.split(",", 2)
        if len(credentials) == 1:
            raise InputError(f"--ice-server {url} has a user but no password.", "Give URL,USER,PASSWORD.")
        user, password = credentials or (None, None)
        try:
            servers.append(IceServer(urls=(url.strip(),), username=user, credential=password))
        except ValueError as error:
            raise InputError(
                f"--ice-server: {error}.", "Give stun:HOST:PORT or turn:HOST:PORT,USER,PASSWORD."
            ) from error
    return WebRtcOptions(ice_servers=tuple(servers), local_candidates=private)


def controller_options(options: argparse.Namespace) -> ControllerOptions:
    """Which controllers to open. Reads the mapping file. Raises InputError."""
    from app.controllers.mapping import ControlMapping, load_mappings
    from app.controllers.opening import ControllerOptions

    if options.control_map is not None and options.osc is None and options.midi is None:
        raise InputError("--control-map was given without --osc or --midi.", "Give one of them.")
    mappings: Sequence[ControlMapping] = ()
    if options.control_map is not None:
        mappings = load_mappings(options.control_map)
    elif options.midi is not None:
        raise InputError("--midi needs --control-map FILE.", "docs/outputs.md has an example.")
    return ControllerOptions(osc_port=options.osc, midi_port=options.midi, mappings=mappings)
