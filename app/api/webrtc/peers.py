"""WebRTC peers of sessions: created from an offer, watched while connected, and removed completely.

Owns all aiortc connections of the server, their number and their end. A peer counts as a connection of its session like
any other client: when it disappears, the session's grace period begins. Independent of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, field

from aiortc import (
    RTCBundlePolicy,
    RTCCertificate,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpCodecCapability,
    RTCRtpReceiver,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from app.api.context import ApiContext
from app.session.session import Session
from app.webrtc.candidates import may_send_to, usable_candidates
from app.webrtc.encoders import tune_encoder
from app.webrtc.ice import ice_servers
from app.webrtc.jitter import bound_decoder, release_on_marker
from app.webrtc.options import WebRtcOptions
from app.webrtc.sdp import (
    OPUS,
    MediaPlan,
    OfferError,
    Role,
    ice_ufrag,
    parse_trickle,
    plan_offer,
    sent_codecs,
    with_start_bitrate,
)
from app.webrtc.sound import PeerSound
from app.webrtc.tracks import PeerVideo, SessionVideo
from app.worker.handle import BusyError
from pipelines.core.errors import ZoetropeError

from .control import ControlChannel

CONTROL_LABEL = "control"
_ID_BYTES = 18  # the id is part of an address that alone may end the peer (RFC 9725, section 5.1)
_CLOSE_S = 5.0
_log = logging.getLogger(__name__)
# what aiortc raises for descriptions that contradict themselves or each other
_REFUSED = (
    *(InternalError, InvalidAccessError, InvalidStateError, OperationError),
    *(ValueError, LookupError, AssertionError, AttributeError, TypeError, OSError),
)


def _known_codecs(kind: str, *mime_types: str) -> list[RTCRtpCodecCapability]:
    """Those of aiortc's, in the order of `mime_types`."""
    known = RTCRtpReceiver.getCapabilities(kind)
    assert known is not None
    return [codec for name in mime_types for codec in known.codecs if codec.mimeType == name]


class NoRestartError(OfferError):
    """An ICE restart, or candidates of another connection."""


@dataclass(slots=True, kw_only=True)
class _Media:
    """What of a connection is the session's."""

    input: PeerVideo | None = None
    sound: PeerSound | None = None
    output: SessionVideo | None = None
    control: ControlChannel | None = None
    tasks: set[asyncio.Task[None]] = field(default_factory=set)


class Peer:
    """One connection. Made, used and closed on one event loop, by `Peers`."""

    def __init__(self, session: Session, role: Role, context: ApiContext, options: WebRtcOptions) -> None:
        self.id = secrets.token_urlsafe(_ID_BYTES)
        self.etag = f'"{secrets.token_urlsafe(9)}"'
        self.session = session
        self.role = role
        self._context = context
        self._lane = context.turns.of(session.id)
        self._options = options
        self._media = _Media()
        self._connected, self._ended = asyncio.Event(), asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._candidates = 0
        self._ufrag = ""
        self._connection = RTCPeerConnection(
            RTCConfiguration(iceServers=ice_servers(options.ice_servers), bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        )
        self._connection.on("connectionstatechange", self._state_changed)
        self._connection.on("datachannel", self._channel_opened)
        self._loop = asyncio.get_running_loop()
        session.connect()
        self._forget = session.proxy.listen(self._wake)

    @property
    def video(self) -> PeerVideo | None:
        """The pictures that it sends, if any."""
        return self._media.input

    @property
    def connected(self) -> bool:
        """Whether it has ever been connected."""
        return self._connected.is_set()

    async def answer(self, offer: str) -> str:
        """Our description, with all our candidates. Raises OfferError."""
        offer, count = usable_candidates(offer, local=self._options.local_candidates)
        self._count(count)
        plans = plan_offer(offer, self.role)
        self._ufrag = ice_ufrag(offer)
        try:
            transceivers = [self._transceiver(plan) for plan in plans if plan.kind != "application"]
            # We wait for the handshake: aiortc takes RSA certificates, as GStreamer has them, from DTLS clients only.
            heard = offer.replace("a=setup:actpass", "a=setup:active")
            await self._connection.setRemoteDescription(RTCSessionDescription(sdp=heard, type="offer"))
            description = await self._connection.createAnswer()
            media = [plan for plan in plans if plan.kind != "application"]
            self._prepare(media, transceivers, sent_codecs(description.sdp))
            await self._connection.setLocalDescription(description)
        except _REFUSED as error:
            raise OfferError(
                f"The offer cannot be answered ({type(error).__name__}).",
                f"Offer video in {' or '.join(self._options.codecs)}, over DTLS, bundled, with multiplexed RTCP.",
            ) from error
        text = self._connection.localDescription.sdp
        return with_start_bitrate(text, self._options.start_kbps, self._options.max_kbps) if self.role.gives else text

    async def add_candidates(self, fragment: str) -> None:
        """Later candidates of the client's. Raises OfferError, NoRestartError."""
        trickle = parse_trickle(fragment)
        if trickle.ufrag is not None and trickle.ufrag != self._ufrag:
            raise NoRestartError("ICE restarts are not offered.", "Make a new connection.")
        self._count(len(trickle.candidates))
        try:
            for candidate in trickle.candidates:
                if may_send_to(candidate.ip, local=self._options.local_candidates):
                    await self._connection.addIceCandidate(candidate)
            if trickle.complete:
                await self._connection.addIceCandidate(None)
        except _REFUSED as error:
            raise OfferError("A candidate cannot be used.", "Send candidates as the browser gives them.") from error

    def _count(self, candidates: int) -> None:
        self._candidates += candidates
        if self._candidates > self._options.candidates:
            raise OfferError("Too many candidates.", f"Send at most {self._options.candidates}.")

    async def run(self) -> None:
        """Until the peer goes, the session is over or `end` is called; then everything of it is closed."""
        try:
            async with asyncio.timeout(self._options.connect_s):
                await self._either(self._connected, self._ended)
            await self._ended.wait()
        except TimeoutError:
            _log.info("a peer did not connect within %g s", self._options.connect_s)
        finally:
            await self.close()

    def end(self) -> None:
        """Let `run` close it. Ending twice is fine."""
        self._ended.set()

    async def close(self) -> None:
        """Close it now. Closing twice is fine; both wait until it is closed."""
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.end()
        self._forget()
        try:
            if self._media.control is not None:
                await self._media.control.finish()
            for task in self._media.tasks:
                task.cancel()
            await asyncio.gather(*self._media.tasks, return_exceptions=True)
            if self._media.output is not None:
                self._media.output.stop()
            if self._media.sound is not None:
                self._media.sound.close()
            async with asyncio.timeout(_CLOSE_S):
                await self._connection.close()
        except TimeoutError:
            _log.warning("a peer's connection did not close within %g s", _CLOSE_S)
        finally:
            self.session.disconnect()

    # ---- aiortc's side ----

    def _transceiver(self, plan: MediaPlan) -> RTCRtpTransceiver:
        """Ours, made before the offer is read, so that only our codecs are answered."""
        transceiver = self._connection.addTransceiver(plan.kind, direction=plan.direction)
        if plan.kind == "audio":
            if plan.input:
                transceiver.setCodecPreferences(_known_codecs("audio", OPUS))
            return transceiver
        if plan.output:
            self._media.output = SessionVideo(self.session, self._lane, repeat_s=self._options.repeat_s)
            transceiver.sender.replaceTrack(self._media.output)
        wanted = [f"video/{name}" for name in (*self._options.codecs, "rtx")]
        transceiver.setCodecPreferences(_known_codecs("video", *wanted))
        return transceiver

    def _prepare(self, plans: list[MediaPlan], transceivers: list[RTCRtpTransceiver], codecs: tuple[str, ...]) -> None:
        """Tune senders and receivers before they start, and take up the peer's pictures and sound."""
        mime_types = iter(codecs)
        for plan, transceiver in zip(plans, transceivers, strict=True):
            if plan.kind == "audio":
                if plan.input:
                    self._media.sound = PeerSound(transceiver.receiver, self.session.sound)
                    self._keep(self._media.sound.run())
                continue
            mime_type = next(mime_types)
            if plan.output:
                tune_encoder(transceiver.sender, mime_type, self._options)
            if plan.input:
                bound_decoder(
                    transceiver.receiver,
                    self._options.decode_backlog_frames,
                    picture_px=self._context.limits.picture_px,
                    refuse=self._refuse,
                )
                if self._options.release_on_marker:
                    release_on_marker(transceiver.receiver)
                self._media.input = PeerVideo(transceiver.receiver.track, self.session, self._lane)
                self.session.set_source(prompt_only=False)
                self._keep(self._take_pictures(self._media.input))

    async def _take_pictures(self, video: PeerVideo) -> None:
        try:
            await video.run()
        except* ZoetropeError as group:
            error = group.exceptions[0]
            assert isinstance(error, ZoetropeError)
            self._refuse(error)
        if self._media.output is None:
            self.end()

    def _refuse(self, error: ZoetropeError) -> None:
        """End it for what it sends, and say so where it listens."""
        _log.warning("a peer was ended: %s", error)
        if self._media.control is not None:
            self._media.control.refuse(error)
        self.end()

    def _keep(self, coroutine: object) -> None:
        assert asyncio.iscoroutine(coroutine)
        task: asyncio.Task[None] = asyncio.ensure_future(coroutine)
        self._media.tasks.add(task)
        task.add_done_callback(self._media.tasks.discard)

    def _state_changed(self) -> None:
        state = self._connection.connectionState
        if state == "connected":
            self._connected.set()
        elif state in ("failed", "closed"):
            self.end()

    def _channel_opened(self, channel: RTCDataChannel) -> None:
        if channel.label != CONTROL_LABEL or self._media.control is not None:
            channel.close()
            return
        self._media.control = ControlChannel(channel, self.session, self._context, missed=self._missed, end=self.end)
        self._keep(self._media.control.run())

    def _missed(self) -> int:
        return self._media.output.missed if self._media.output is not None else 0

    def _wake(self) -> None:
        """Called on the worker client's thread, at every frame."""
        if self.session.over and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.end)

    @staticmethod
    async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
        waits = [asyncio.ensure_future(event.wait()) for event in (first, second)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


class Peers:
    """All peers of the process, by their ids. Used on one event loop."""

    def __init__(self, context: ApiContext, options: WebRtcOptions) -> None:
        self.options = options
        self._context = context
        self._peers: dict[str, Peer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        RTCCertificate.generateCertificate()  # the first one takes 11 ms, which no event loop should wait

    async def join(self, session: Session, role: Role, offer: str) -> tuple[Peer, str]:
        """A peer of `session` and the answer to its offer. Raises BusyError, OfferError."""
        alike = sum(peer.session is session for peer in self._peers.values())
        if alike >= self.options.peers_per_session or len(self._peers) >= self.options.peers:
            raise BusyError("Busy: no more WebRTC connections are free.", "Close one, or try again later.")
        peer = Peer(session, role, self._context, self.options)
        self._peers[peer.id] = peer
        try:
            async with asyncio.timeout(self.options.connect_s):
                answer = await peer.answer(offer)
        except BaseException as error:  # a client that went away while it was answered leaves nothing either
            self._peers.pop(peer.id)
            await peer.close()
            if isinstance(error, TimeoutError):
                raise OfferError("The offer took too long to answer.", "Are the ICE servers reachable?") from error
            raise
        task = asyncio.create_task(self._attend(peer), name=f"peer {role.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return peer, answer

    def get(self, peer_id: str) -> Peer | None:
        """The peer of that id."""
        return self._peers.get(peer_id)

    @property
    def peers(self) -> tuple[Peer, ...]:
        """All that live."""
        return tuple(self._peers.values())

    async def stop(self) -> None:
        """Close all and wait until they are closed."""
        for peer in self.peers:
            peer.end()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _attend(self, peer: Peer) -> None:
        try:
            await peer.run()
        finally:
            self._peers.pop(peer.id, None)
