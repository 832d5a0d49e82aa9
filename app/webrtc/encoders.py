"""aiortc's video encoders with our bit rates and presets, set per sender instead of globally.

aiortc 1.16 has bit rates and presets in module constants (H.264: 1 Mbit/s, at most 3, x264's medium preset); here they
are per peer. Depends on aiortc's internals, not on sessions.
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
_FRAME_RATE = 30  # for x264's rate control; frames carry their real timestamps
_BT601, _STUDIO = 6, 1  # ITU-T H.273
_RECREATE_RATIO = 0.1  # aiortc's: a larger change of the bit rate recreates the encoder


class TunedVp8(Vp8Encoder):
    """VP8 within the options' bit rates."""

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
        self._bitrate = _clamped(bitrate, self._options)
        vars(self)["_Vp8Encoder__target_bitrate"] = self._bitrate  # sets the size of the rate-control buffer


class TunedH264(H264Encoder):
    """H.264 within the options' bit rates, with their preset, and timestamps finer than 1/30 s."""

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
        self._bitrate = _clamped(bitrate, self._options)

    def _encode_frame(self, frame: VideoFrame, force_keyframe: bool) -> Iterator[bytes]:
        if self._stale(frame):
            self.codec = self._make(frame)
        return super()._encode_frame(frame, force_keyframe)

    def _stale(self, frame: VideoFrame) -> bool:
        codec = self.codec
        if codec is None or (codec.width, codec.height) != (frame.width, frame.height):
            return True
        assert codec.bit_rate is not None
        return abs(self.target_bitrate - codec.bit_rate) > _RECREATE_RATIO * codec.bit_rate

    def _make(self, frame: VideoFrame) -> CodecContext:
        codec = CodecContext.create("libx264", "w")
        codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuv420p"
        codec.bit_rate = self.target_bitrate
        codec.framerate, codec.time_base = Fraction(_FRAME_RATE, 1), Fraction(1, _CLOCK_HZ)
        codec.thread_count = self._options.encoder_threads
        codec.options = {"tune": "zerolatency", "preset": self._options.h264_preset}
        codec.profile = "Baseline"
        # untagged, Chromium assumes BT.709
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT601
        codec.color_range = _STUDIO
        return codec


ENCODERS: Mapping[str, Callable[[WebRtcOptions], Encoder]] = MappingProxyType(
    {"video/vp8": TunedVp8, "video/h264": TunedH264}
)


def tune_encoder(sender: RTCRtpSender, mime_type: str, options: WebRtcOptions) -> None:
    """Set this sender's encoder before it creates one itself. Raises AiortcError."""
    if _ENCODER not in vars(sender):
        raise AiortcError(f"This aiortc has no {_ENCODER}.", "Install aiortc 1.16.")
    vars(sender)[_ENCODER] = ENCODERS[mime_type.lower()](options)


def _clamped(bitrate: int, options: WebRtcOptions) -> int:
    return max(options.min_kbps * 1000, min(bitrate, options.max_kbps * 1000))
