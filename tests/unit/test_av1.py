"""The sizes in AV1 sequence headers: those that an encoder wrote, and damaged ones."""

from __future__ import annotations

import io
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from app.media.av1 import sequence_sizes
from app.media.heif import coded_sizes, read_file

SIZES = [(64, 48), (640, 360), (1922, 1082)]


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_a_video_is_found(size: tuple[int, int]) -> None:
    context = av.VideoCodecContext.create("libsvtav1", "w")
    context.width, context.height, context.pix_fmt = *size, "yuv420p"
    context.time_base, context.options = Fraction(1, 25), {"preset": "12"}
    frame = av.VideoFrame.from_ndarray(np.zeros((size[1], size[0], 3), np.uint8), format="rgb24")
    packets = [*context.encode(frame.reformat(format="yuv420p")), *context.encode(None)]
    assert sequence_sizes(bytes(packets[0])) == [size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4", "4:0:0"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_sizes_of_a_picture_are_found(size: tuple[int, int], subsampling: str, mode: str) -> None:
    made = io.BytesIO()
    Image.new(mode, size).save(made, "AVIF", subsampling=subsampling, speed=10)
    assert coded_sizes(read_file(made)) == [size] * len(mode[2:])


def test_damaged_headers_end_with_words_and_soon() -> None:
    random = np.random.default_rng(1)
    for length in range(1, 200):
        with suppress(ValueError):
            sequence_sizes(random.integers(0, 256, length, dtype=np.uint8).tobytes())
    with pytest.raises(ValueError, match="too many parts"):
        sequence_sizes(bytes([0b0001_0010, 0]) * 20_000)
