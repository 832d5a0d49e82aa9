"""Options of WebRTC peers: ICE servers, codecs, bit rates, limits."""

from __future__ import annotations

from dataclasses import dataclass, field

CODECS = ("H264", "VP8")
_PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium")


@dataclass(frozen=True, slots=True, kw_only=True)
class IceServer:
    """A STUN or TURN server for both peers. urls: for example stun:host:3478 or turn:host:3478?transport=udp."""

    urls: tuple[str, ...]
    username: str | None = None
    credential: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for url in self.urls:
            if url.partition(":")[0] not in ("stun", "stuns", "turn", "turns") or not url.partition(":")[2]:
                raise ValueError(f"{url!r} is not an ICE server; give stun:HOST:PORT or turn:HOST:PORT")
            if any(letter in url for letter in ' <>"\r\n'):
                raise ValueError(f"{url!r} has invalid characters; give stun:HOST:PORT or turn:HOST:PORT")
        if not self.urls:
            raise ValueError("an ICE server has no urls; give one or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebRtcOptions:
    """ice_servers: none by default, which is enough on one network.

    codecs: allowed ones, in order of preference. start_kbps, min_kbps, max_kbps: of the video sent; the peer's
    bandwidth estimate moves the rate between the limits. encoder_threads: of one peer's H.264 encoder. h264_preset:
    x264's. release_on_marker: release a received frame at its last packet instead of at the next frame's first: one
    frame period sooner (docs/webrtc.md); False for aiortc's behaviour. decode_backlog_frames: maximum of received
    frames that wait for the decoder. connect_s: connection timeout. repeat_s: after this, the newest picture is sent
    again. peers: maximum in total. peers_per_session: maximum at once. sdp_bytes: limit of an offer. candidates: of one
    peer, in its offer and sent later. local_candidates: peers may have addresses of this machine and of its link: where
    nobody else can connect.
    """

    ice_servers: tuple[IceServer, ...] = ()
    codecs: tuple[str, ...] = CODECS
    start_kbps: int = 2500
    min_kbps: int = 300
    max_kbps: int = 8000
    h264_preset: str = "superfast"
    encoder_threads: int = 1
    release_on_marker: bool = True
    decode_backlog_frames: int = 8
    connect_s: float = 15.0
    repeat_s: float = 1.0
    peers: int = 32
    peers_per_session: int = 4
    sdp_bytes: int = 32 << 10
    candidates: int = 64
    local_candidates: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.codecs if name not in CODECS]
        if unknown or not self.codecs:
            raise ValueError(f"codecs are {self.codecs}; choose from {', '.join(CODECS)}")
        if not 0 < self.min_kbps <= self.start_kbps <= self.max_kbps:
            raise ValueError(
                f"bit rates are {self.min_kbps}, {self.start_kbps}, {self.max_kbps}; give min <= start <= max, above 0"
            )
        if self.h264_preset not in _PRESETS:
            raise ValueError(f"h264_preset is {self.h264_preset!r}; choose from {', '.join(_PRESETS)}")
        for name in ("connect_s", "repeat_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give seconds above 0")
        counts = ("encoder_threads", "decode_backlog_frames", "peers", "peers_per_session", "sdp_bytes", "candidates")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
