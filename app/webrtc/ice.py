"""ICE servers as aiortc takes them. Knows no peer."""

from __future__ import annotations

from aiortc import RTCIceServer

from .options import IceServer


def ice_servers(servers: tuple[IceServer, ...]) -> list[RTCIceServer]:
    """As aiortc has them; an empty list asks for none, where None would ask a public one."""
    return [
        RTCIceServer(urls=list(server.urls), username=server.username, credential=server.credential)
        for server in servers
    ]
