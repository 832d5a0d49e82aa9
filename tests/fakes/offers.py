"""SDP offers of peers, for requests that only need one."""

from __future__ import annotations

import asyncio
from functools import cache

from aiortc import RTCPeerConnection


@cache
def offer(direction: str = "sendrecv") -> str:
    """The SDP offer of a peer that sends and receives video, or does one of both."""

    async def make() -> str:
        peer = RTCPeerConnection()
        peer.addTransceiver("video", direction)
        await peer.setLocalDescription(await peer.createOffer())
        made = peer.localDescription.sdp
        await peer.close()
        return str(made)

    return asyncio.run(make())
