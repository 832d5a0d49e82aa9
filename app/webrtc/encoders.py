"""aiortc's video encoders with our bit rates and presets, for one sender and never for all.

aiortc 1.16 keeps bit rates and presets in constants of its modules (H.264: 1 Mbit/s, at most 3, x264's medium preset);
here they are a peer's own. Knows aiortc's inside; no session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from types import MappingProxyType

from aiortc import RTCRtpSender
from aiortc.codecs.base import Encoder
from aiortc.codecs.h264 import H264Encoder
from aiortc.codecs.vpx import Vp8Encoder
from av import CodecContext
from av.video.frame import VideoFrame

from .jitter import AiortcError
from .options import WebRtcOptions

_ENCODER = "_RTCRtpSender__encoder"
_CLOCK_HZ = 90_000
_FRAME_RATE = 30  # what x264's rate control expects; frames carry their real times
_BT601, _STUDIO = 6, 1  # ITU-T H.273
_RENEW_SHARE = 0.1  # aiortc's: an encoder is renewed when its bit rate is to change by more


class TunedVp8(Vp8Encoder):
    """VP8 between the bit rates of the options."""

    def __init__(self, options: WebRtcOptions) -> None:
        super().__init__()
        self._options = options
        self.target_bitrate = options.start_kbps * 1000

    @property
    def target_bitrate(self) -> int:
        """Bits per second."""
        return self._bitrate

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._bitrate = _limited(bitrate, self._options)
        vars(self)["_Vp8Encoder__target_bitrate"] = self._bitrate  # read for the size of the rate buffer


class TunedH264(H264Encoder):
    """H.264 between the bit rates of the options, with their preset, and times finer than 1/30 s."""

    def __init__(self, options: WebRtcOptions) -> None:
        super().__init__()
        self._options = options
        self.target_bitrate = options.start_kbps * 1000

    @property
    def target_bitrate(self) -> int:
        """Bits per second."""
        return self._bitrate

    @target_bitrate.setter
    def target_bitrate(self, bitrate: int) -> None:
        self._bitrate = _limited(bitrate, self._options)

    def _encode_frame(self, frame: VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
        if self._stale(frame):
            self.codec = self._make(frame)
        return super()._encode_frame(frame, force_keyframe)

    def _stale(self, frame: VideoFrame) -> bool:
        codec = self.codec
        if codec is None or (codec.width, codec.height) != (frame.width, frame.height):
            return True
        assert codec.bit_rate is not None
        return abs(self.target_bitrate - codec.bit_rate) > _RENEW_SHARE * codec.bit_rate

    def _make(self, frame: VideoFrame) -> CodecContext:
        codec = CodecContext.create("libx264", "w")
        codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuv420p"
        codec.bit_rate = self.target_bitrate
        codec.framerate, codec.time_base = Fraction(_FRAME_RATE, 1), Fraction(1, _CLOCK_HZ)
        codec.thread_count = self._options.encoder_threads
        codec.options = {"tune": "zerolatency", "preset": self._options.h264_preset}
        codec.profile = "Baseline"
        # Chromium takes BT.709 where nothing is said
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT601
        codec.color_range = _STUDIO
        return codec


ENCODERS: Mapping[str, Callable[[WebRtcOptions], Encoder]] = MappingProxyType(
    {"video/vp8": TunedVp8, "video/h264": TunedH264}
)


def tune_encoder(sender: RTCRtpSender, mime_type: str, options: WebRtcOptions) -> None:
    """Give this sender its encoder before it makes one itself. Raises AiortcError."""
    if _ENCODER not in vars(sender):
        raise AiortcError(f"This aiortc has no {_ENCODER}.", "Install aiortc 1.16.")
    vars(sender)[_ENCODER] = ENCODERS[mime_type.lower()](options)


def _limited(bitrate: int, options: WebRtcOptions) -> int:
    return max(options.min_kbps * 1000, min(bitrate, options.max_kbps * 1000))
