"""Pushes a session's output to a WHIP server (RFC 9725), such as a streaming service's, and reconnects by itself.

Off until started with an address. Owns the client side of one connection at a time; independent of our own routes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from concurrent.futures import Executor
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urljoin, urlsplit

import httpx
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCPeerConnection,
    RTCRtpSender,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from app.session.session import Session
from app.webrtc.encoders import tune_encoder
from app.webrtc.ice import ice_servers
from app.webrtc.options import WebRtcOptions
from app.webrtc.sdp import sent_codecs
from app.webrtc.tracks import SessionVideo
from pipelines.core.errors import InputError, OutputError, ZoetropeError

_SDP = "application/sdp"
_MAX_ANSWER_BYTES = 64 << 10
_GIVE_UP = (400, 401, 403, 404, 405, 406, 415, 422)  # permanent: a retry would get the same answer
_SETTLED_S = 10.0  # a connection that lasted this long resets the back-off
_log = logging.getLogger(__name__)
# what aiortc and sockets raise for an invalid answer or a network failure
_BROKEN = (
    *(InternalError, InvalidAccessError, InvalidStateError, OperationError),
    *(ValueError, LookupError, AssertionError, AttributeError, TypeError, OSError),
)


class PushRefusedError(OutputError):
    """The server will not take this stream: wrong address, token or format."""


class PushState(Enum):
    """The state of a push."""

    IDLE = "idle"
    CONNECTING = "connecting"
    LIVE = "live"
    WAITING = "waiting"  # for the next attempt
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhipPushOptions:
    """url: of the WHIP endpoint, http or https. token: its bearer token, if required.

    first_wait_s, max_wait_s: delay before the next attempt; doubled each time, with up to 25 % jitter.
    timeout_s: for the answer and connection. webrtc: codecs, bit rates and ICE servers.
    """

    url: str = field(repr=False)  # may hold a key
    token: str | None = field(default=None, repr=False)
    first_wait_s: float = 1.0
    max_wait_s: float = 30.0
    timeout_s: float = 10.0
    webrtc: WebRtcOptions = field(default_factory=WebRtcOptions)

    def __post_init__(self) -> None:
        try:
            httpx.URL(self.url)
            parts = urlsplit(self.url)
        except (httpx.InvalidURL, ValueError) as error:
            raise InputError("The WHIP address is not a URL.", "Give https://HOST/PATH.") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError("The WHIP address is not http or https.", "Give https://HOST/PATH.")
        if parts.username or parts.password:
            raise InputError("The WHIP address contains a password.", "Give the token separately.")
        if not 0 < self.first_wait_s <= self.max_wait_s or self.timeout_s <= 0:
            raise ValueError("waits must be above 0, and first_wait_s at most max_wait_s")


class WhipPush:
    """One push. `run` on an event loop lasts until it is cancelled, the session ends or the server refuses for good.

    Like every output it does not keep the session alive: it is not a client connection.
    """

    def __init__(self, session: Session, codecs: Executor, options: WhipPushOptions) -> None:
        self.state = PushState.IDLE
        self.connections = 0  # successful ones
        self.trouble = ""  # of the last attempt
        self.address: str | None = None  # the server's URL of the current connection
        self._session = session
        self._codecs = codecs
        self._options = options

    async def run(self) -> None:
        """Push, and reconnect after every loss. Raises PushRefusedError."""
        wait_s = self._options.first_wait_s
        loop = asyncio.get_running_loop()
        try:
            async with httpx.AsyncClient(timeout=self._options.timeout_s, headers=self._headers()) as http:
                while True:
                    began_s = loop.time()
                    await self._attempt(http)
                    if loop.time() - began_s > _SETTLED_S:
                        wait_s = self._options.first_wait_s
                    if self._session.over:
                        return
                    self.state = PushState.WAITING
                    await asyncio.sleep(wait_s * (1 + random.random() / 4))
                    wait_s = min(2 * wait_s, self._options.max_wait_s)
        finally:
            self.state = PushState.ENDED

    async def _attempt(self, http: httpx.AsyncClient) -> None:
        """One connection, from offer to loss; the cause is kept in `trouble`. Raises PushRefusedError."""
        self.state = PushState.CONNECTING
        try:
            await self._push(http)
            self.trouble = "The connection was lost."
        except PushRefusedError as error:
            self.trouble = error.message
            raise
        except (httpx.HTTPError, TimeoutError, OutputError, *_BROKEN) as error:
            self.trouble = error.message if isinstance(error, ZoetropeError) else type(error).__name__
            _log.info("WHIP push: %s", self.trouble)

    async def _push(self, http: httpx.AsyncClient) -> None:
        options = self._options
        servers = ice_servers(options.webrtc.ice_servers)
        connection = RTCPeerConnection(RTCConfiguration(iceServers=servers, bundlePolicy=RTCBundlePolicy.MAX_BUNDLE))
        video = SessionVideo(self._session, self._codecs, repeat_s=options.webrtc.repeat_s)
        connected, ended = asyncio.Event(), asyncio.Event()

        def changed() -> None:
            if connection.connectionState == "connected":
                connected.set()
            elif connection.connectionState in ("failed", "closed"):
                connected.set()
                ended.set()

        connection.on("connectionstatechange", changed)
        video.once("ended", ended.set)
        try:
            self._offer_video(connection, video)
            async with asyncio.timeout(options.timeout_s):
                await connection.setLocalDescription(await connection.createOffer())
                answer, self.address = await self._ask(http, connection.localDescription.sdp)
                tune_encoder(connection.getSenders()[0], sent_codecs(answer)[0], options.webrtc)
                await connection.setRemoteDescription(RTCSessionDescription(sdp=answer, type="answer"))
                await connected.wait()
            if not ended.is_set():
                self.state = PushState.LIVE
                self.connections += 1
            await ended.wait()
        finally:
            await asyncio.shield(self._leave(http, connection, video))

    def _offer_video(self, connection: RTCPeerConnection, video: SessionVideo) -> None:
        transceiver = connection.addTransceiver(video, direction="sendonly")
        available = RTCRtpSender.getCapabilities("video")
        assert available is not None
        names = [f"video/{name}" for name in self._options.webrtc.codecs]
        chosen = [codec for name in names for codec in available.codecs if codec.mimeType == name]
        rtx = [codec for codec in available.codecs if codec.mimeType == "video/rtx"]
        transceiver.setCodecPreferences([*chosen, *rtx])

    async def _ask(self, http: httpx.AsyncClient, offer: str) -> tuple[str, str | None]:
        """The server's answer, and the URL whose DELETE ends the push. Raises OutputError, PushRefusedError."""
        headers = {"Content-Type": _SDP, "Accept": _SDP}
        async with http.stream("POST", self._options.url, content=offer, headers=headers) as response:
            status = response.status_code
            if status in _GIVE_UP:
                raise PushRefusedError(f"The WHIP server refused the stream ({status}).", "Check address and token.")
            if status != httpx.codes.CREATED:
                raise OutputError(f"The WHIP server answered {status}.", "The request is retried.")
            answer = bytearray()
            async for piece in response.aiter_bytes():
                answer += piece
                if len(answer) > _MAX_ANSWER_BYTES:
                    raise OutputError("The WHIP server's answer is too long.", "Is it a WHIP server?")
            return answer.decode(), self._resource(response.headers.get("location"))

    def _resource(self, location: str | None) -> str | None:
        """The full URL to DELETE; None for none, and on another server, which must not get our token."""
        if location is None:
            return None
        try:
            address = urljoin(self._options.url, location)
            httpx.URL(address)
            ours, theirs = urlsplit(self._options.url), urlsplit(address)
        except (httpx.InvalidURL, ValueError):
            return None
        return address if (ours.scheme, ours.netloc) == (theirs.scheme, theirs.netloc) else None

    async def _leave(self, http: httpx.AsyncClient, connection: RTCPeerConnection, video: SessionVideo) -> None:
        address, self.address = self.address, None
        video.stop()
        await connection.close()
        if address is not None:
            try:
                await http.delete(address)
            except httpx.HTTPError as error:
                _log.info("WHIP push: the server was not notified of the end (%s)", type(error).__name__)

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._options.token}"} if self._options.token is not None else {}
