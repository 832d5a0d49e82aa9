"""Offers, answers and candidates as text: what they ask for, checked before a peer is made of them.

Owns reading SDP (RFC 8866) and trickled candidates (RFC 8840), and what a peer may want of a session; makes no
connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from aiortc import RTCIceCandidate
from aiortc.sdp import MediaDescription, SessionDescription, candidate_from_sdp

from pipelines.core.errors import InputError

from .options import IceServer

OPUS = "audio/opus"
_MAX_MEDIA = 8
# aiortc's parser meets malformed lines with whatever Python raises
_MALFORMED = (ValueError, LookupError, AssertionError, AttributeError, TypeError)


class OfferError(InputError):
    """An offer or candidate that cannot be read, or that asks for nothing that there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """What a peer may do with its session. gives: send pictures in. takes: receive pictures. name: of its routes."""

    name: str
    gives: bool
    takes: bool


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        role.name: role
        for role in (
            Role(name="whip", gives=True, takes=False),
            Role(name="whep", gives=False, takes=True),
            Role(name="webrtc", gives=True, takes=True),
        )
    }
)

_DIRECTIONS = MappingProxyType(
    {
        (True, True): "sendrecv",
        (True, False): "recvonly",
        (False, True): "sendonly",
        (False, False): "inactive",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPlan:
    """What becomes of one of an offer's media.

    kind: audio, video or application. input: the session takes its pictures or sound. output: it is given pictures.
    """

    kind: str
    input: bool
    output: bool

    @property
    def direction(self) -> str:
        """As our side's description has it."""
        return _DIRECTIONS[self.input, self.output]


def plan_offer(text: str, role: Role) -> tuple[MediaPlan, ...]:
    """What to answer to each of the offer's media, in order: at most one video input, one sound input and one output.

    Sound is taken in Opus, from a peer that may send pictures, and never sent.
    Raises OfferError: unreadable, or without the video that the role is for.
    """
    try:
        offer = SessionDescription.parse(text)
    except _MALFORMED as error:
        raise OfferError("The offer is not readable SDP.", "Send the local description as it is.") from error
    if len(offer.media) > _MAX_MEDIA:
        raise OfferError(f"The offer has {len(offer.media)} media.", f"Offer at most {_MAX_MEDIA}.")
    for media in offer.media:
        if media.kind not in ("audio", "video", "application"):
            raise OfferError("The offer has media of an unknown kind.", "Offer video, and a data channel if wanted.")
        if not _secured(media):
            raise OfferError(
                "The offer lacks a fingerprint, its set-up role or ICE credentials.", "Offer DTLS and ICE."
            )
    plans: list[MediaPlan] = []
    for media in offer.media:
        video = media.kind == "video"
        gives = (video or _has_opus(media)) and role.gives and media.direction in (None, "sendonly", "sendrecv")
        takes = video and role.takes and media.direction in (None, "recvonly", "sendrecv")
        plans.append(
            MediaPlan(
                kind=media.kind,
                input=gives and not any(plan.input and plan.kind == media.kind for plan in plans),
                output=takes and not any(plan.output for plan in plans),
            )
        )
    if not any(plan.input or plan.output for plan in plans if plan.kind == "video"):
        wanted = "sendrecv" if role.gives and role.takes else "sendonly" if role.gives else "recvonly"
        raise OfferError("The offer has no video that could be used here.", f"Offer video with a={wanted}.")
    return tuple(plans)


def _has_opus(media: MediaDescription) -> bool:
    return media.kind == "audio" and any(codec.mimeType.lower() == OPUS for codec in media.rtp.codecs)


def _secured(media: MediaDescription) -> bool:
    dtls, ice = media.dtls, media.ice
    return bool(dtls and dtls.fingerprints and ice and ice.usernameFragment and ice.password)


def sent_codecs(answer: str) -> tuple[str, ...]:
    """The MIME type that our side sends on each of the answer's video media, in order."""
    media = SessionDescription.parse(answer).media
    return tuple(item.rtp.codecs[0].mimeType for item in media if item.kind == "video")


def with_start_bitrate(answer: str, kbps: int, max_kbps: int) -> str:
    """The answer with what makes browsers begin at `kbps` instead of a crawl (parameters of libwebrtc only)."""
    hint = f"x-google-start-bitrate={kbps};x-google-max-bitrate={max_kbps}"
    lines = answer.split("\r\n")
    described = {line[len("a=fmtp:") :].split(" ")[0] for line in lines if line.startswith("a=fmtp:")}
    told: list[str] = []
    for line in lines:
        pictures = _picture_codec(line)
        if line.startswith("a=fmtp:") and "apt=" not in line and "profile-level-id" in line:
            line = f"{line};{hint}"
        told.append(line)
        if pictures is not None and pictures not in described:
            told.append(f"a=fmtp:{pictures} {hint}")
    return "\r\n".join(told)


def _picture_codec(line: str) -> str | None:
    """The payload type of a line that maps one to VP8 or H.264."""
    if not line.startswith("a=rtpmap:"):
        return None
    payload_type, _, name = line[len("a=rtpmap:") :].partition(" ")
    return payload_type if name.partition("/")[0].upper() in ("VP8", "H264") else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trickle:
    """A fragment of candidates. ufrag: None where the fragment names none. complete: no more will come."""

    ufrag: str | None
    candidates: tuple[RTCIceCandidate, ...]
    complete: bool


def parse_trickle(text: str) -> Trickle:
    """An application/trickle-ice-sdpfrag body. Raises OfferError."""
    mid: str | None = None
    ufrag: str | None = None
    complete = False
    index = -1
    candidates: list[RTCIceCandidate] = []
    for line in text.splitlines():
        name, _, value = line.strip().partition(":")
        if name.startswith("m="):
            index, mid = index + 1, None
        elif name == "a=mid":
            mid = value
        elif name == "a=ice-ufrag":
            ufrag = value
        elif name == "a=end-of-candidates":
            complete = True
        elif name == "a=candidate":
            candidates.append(_candidate(value, mid, max(0, index)))
    return Trickle(ufrag=ufrag, candidates=tuple(candidates), complete=complete)


def _candidate(value: str, mid: str | None, index: int) -> RTCIceCandidate:
    try:
        candidate = candidate_from_sdp(value)
    except _MALFORMED as error:
        raise OfferError("A candidate is not readable.", "Send candidates as the browser gives them.") from error
    if mid is None:
        candidate.sdpMLineIndex = index
    else:
        candidate.sdpMid = mid
    return candidate


def ice_ufrag(description: str) -> str:
    """The ICE user name of a description that `plan_offer` has read."""
    ice = SessionDescription.parse(description).media[0].ice
    assert ice is not None
    return str(ice.usernameFragment)


def ice_links(servers: Iterable[IceServer]) -> list[str]:
    """Values of Link headers (RFC 9725, section 4.6)."""
    links = []
    for server in servers:
        for url in server.urls:
            link = f'<{url}>; rel="ice-server"'
            if server.username is not None and server.credential is not None:
                link += f'; username="{_quoted(server.username)}"; credential="{_quoted(server.credential)}"'
                link += '; credential-type="password"'
            links.append(link)
    return links


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
