"""Converts ICE servers to aiortc's type."""

from __future__ import annotations

from aiortc import RTCIceServer

from .options import IceServer


def ice_servers(servers: tuple[IceServer, ...]) -> list[RTCIceServer]:
    """aiortc's ICE servers. An empty list uses none; None would make aiortc use a public STUN server."""
    return [
        RTCIceServer(urls=list(server.urls), username=server.username, credential=server.credential)
        for server in servers
    ]
