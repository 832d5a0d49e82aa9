"""Sizes parsed from encoded bytes, checked with the encoders that wrote them; false and truncated bytes are
reported."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
from av import CodecContext
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from app.webrtc.sizes import PictureSizeError, coded_size_px

X264 = {"tune": "zerolatency", "preset": "ultrafast"}


def encoded(library: str, width: int, height: int, profile: str | None = None, **options: str) -> list[bytes]:
    """Return a key frame and one that depends on it."""
    codec = CodecContext.create(library, "w")
    assert isinstance(codec, VideoCodecContext)
    codec.width, codec.height, codec.time_base = width, height, Fraction(1, 30)
    codec.pix_fmt = options.pop("pixels", "yuv420p")
    codec.options = {name.replace("_", "-"): value for name, value in options.items()}
    if profile is not None:
        codec.profile = profile
    packets = []
    for number in range(2):
        image = np.full((height, width, 3), 40 * number + 60, np.uint8)
        frame = VideoFrame.from_ndarray(image, format="rgb24").reformat(format=codec.pix_fmt)
        frame.pts = number
        packets += [bytes(packet) for packet in codec.encode(frame)]
    return packets


def whole(size: int) -> int:
    return (size + 15) // 16 * 16


@pytest.mark.parametrize(("width", "height"), [(64, 48), (66, 50), (512, 512), (1920, 1080), (16, 4096)])
def test_sizes_as_the_encoders_wrote_them(width: int, height: int) -> None:
    key, later = encoded("libvpx", width, height, deadline="realtime", lag_in_frames="0")
    assert coded_size_px("VP8", key) == (width, height)
    assert coded_size_px("VP8", later) is None
    for profile in ("Baseline", "Main", "High"):
        key, later = encoded("libx264", width, height, profile, **X264)
        assert coded_size_px("H264", key) == (whole(width), whole(height))
        assert coded_size_px("h264", later) is None


def test_the_rarer_fields_of_h264() -> None:
    key, *_ = encoded("libx264", 80, 64, "High 4:4:4 Predictive", **X264, pixels="yuv444p", x264_params="cqm=jvt")
    assert coded_size_px("H264", key) == (80, 64)
    key, *_ = encoded("libx264", 80, 64, **X264, x264_params="interlaced=1")
    assert coded_size_px("H264", key) == (80, 64)
    small, *_ = encoded("libx264", 64, 64, **X264)
    large, *_ = encoded("libx264", 640, 480, **X264)
    assert coded_size_px("H264", small + large + small) == (640, 480)


def test_other_codecs_and_nothing_say_nothing() -> None:
    assert coded_size_px("VP9", b"\x00" * 20) is None
    assert coded_size_px("VP8", b"") is None
    assert coded_size_px("H264", b"\x00\x00\x01\x65 no parameters") is None


@pytest.mark.parametrize("data", [b"\x00\x00\x01\x67", b"\x00\x00\x01\x67\x42\x00\x1f" + bytes(60)])
def test_parameters_that_end_or_lie_are_named(data: bytes) -> None:
    with pytest.raises(PictureSizeError):
        coded_size_px("H264", data)


def test_a_vp8_key_frame_has_its_start_code_and_its_size() -> None:
    for data in (b"\x10\x02\x00\x9d\x01\x2b\x40\x00\x30\x00", b"\x10\x02\x00\x9d\x01\x2a\x40"):
        with pytest.raises(PictureSizeError):
            coded_size_px("VP8", data)


def test_garbage_gives_a_size_nothing_or_that_error() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        data = b"\x00\x00\x01\x67" + rng.randbytes(rng.randint(0, 60))
        for codec in ("VP8", "H264"):
            try:
                size = coded_size_px(codec, data)
            except PictureSizeError:
                continue
            assert size is None or min(size) >= 0
