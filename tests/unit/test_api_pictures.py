"""Pictures from bytes: every format round-trips, losslessly where possible; bombs and false sizes are refused
undecoded."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from app.api.pictures import PictureError, pack, read_picture, unpack
from app.api.stream.wire import PictureFormat
from pipelines.core.types import Picture

MAX_PX = 64 * 64


def gradient() -> Picture:
    rows, columns = np.mgrid[0:24, 0:32]
    return np.stack([rows * 10, columns * 7, 255 - rows * 5], axis=-1).astype(np.uint8)


def claiming(form: str, side_px: int) -> bytes:
    """Return a file whose header claims a square of `side_px`."""
    target = io.BytesIO()
    Image.fromarray(gradient()).save(target, form)
    data = bytearray(target.getvalue())
    match form:
        case "PNG":
            struct.pack_into(">II", data, 16, side_px, side_px)
        case "JPEG":
            struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side_px, side_px)
        case "WEBP":
            extended = b"VP8X" + struct.pack("<II", 10, 0) + (side_px - 1).to_bytes(3, "little") * 2
            data[12:12] = extended
            struct.pack_into("<I", data, 4, len(data) - 8)
    return bytes(data)


@pytest.mark.parametrize(
    ("form", "tolerance"), [(PictureFormat.RGB, 0), (PictureFormat.JPEG, 4), (PictureFormat.WEBP, 9)]
)
def test_every_format_comes_back(form: PictureFormat, tolerance: int) -> None:
    image = gradient()
    back = unpack(pack(image, form, 95), form, width=32, height=24, max_px=MAX_PX)
    assert back.shape == image.shape
    assert back.dtype == np.uint8
    assert np.abs(back.astype(int) - image).max() <= tolerance * 4
    assert np.abs(back.astype(int) - image).mean() <= tolerance


@pytest.mark.parametrize("lossless", [True, False])
def test_both_kinds_of_webp_and_a_png_are_read(lossless: bool) -> None:
    target = io.BytesIO()
    Image.fromarray(gradient()).save(target, "WEBP", lossless=lossless, quality=95)
    back = unpack(target.getvalue(), PictureFormat.WEBP, width=32, height=24, max_px=MAX_PX)
    assert np.array_equal(back, gradient()) == lossless
    png = io.BytesIO()
    Image.fromarray(gradient()).save(png, "PNG")
    assert np.array_equal(read_picture(png.getvalue(), max_px=MAX_PX), gradient())
    assert read_picture(pack(gradient(), PictureFormat.JPEG, 90), max_px=MAX_PX).shape == (24, 32, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_a_bomb_is_refused_before_anything_is_allocated(form: str) -> None:
    bomb = claiming(form, 60000 if form != "WEBP" else 16000)
    tracemalloc.start()
    with pytest.raises(PictureError, match="too large"):
        read_picture(bomb, max_px=4096 * 4096)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(("form", "name"), [(PictureFormat.JPEG, "JPEG"), (PictureFormat.WEBP, "WEBP")])
def test_a_picture_that_is_larger_than_announced_is_refused(form: PictureFormat, name: str) -> None:
    with pytest.raises(PictureError, match="its header says 32x24"):
        unpack(claiming(name, 16000), form, width=32, height=24, max_px=MAX_PX)


def test_an_announced_size_beyond_the_limit_is_refused() -> None:
    with pytest.raises(PictureError, match="60000x60000 px is too large"):
        unpack(b"", PictureFormat.RGB, width=60000, height=60000, max_px=MAX_PX)


@pytest.mark.parametrize("form", list(PictureFormat))
@pytest.mark.parametrize("data", [b"", b"garbage", b"RIFF" + bytes(60), b"\xff\xd8\xff" + bytes(60)])
def test_garbage_is_no_picture(form: PictureFormat, data: bytes) -> None:
    with pytest.raises(PictureError):
        unpack(data, form, width=32, height=24, max_px=MAX_PX)


@pytest.mark.parametrize("form", [PictureFormat.JPEG, PictureFormat.WEBP])
def test_half_a_picture_is_refused(form: PictureFormat) -> None:
    data = pack(gradient(), form, 90)
    with pytest.raises(PictureError, match="corrupt"):
        unpack(data[:-100], form, width=32, height=24, max_px=MAX_PX)


@pytest.mark.parametrize("length", [2**31 - 1, 5000, 0xFFFFFFFF])
def test_a_png_chunk_that_claims_more_than_the_file_is_refused_at_once(length: int) -> None:
    """The decoder would allocate and clear the claimed size: seconds for 2 GiB."""
    target = io.BytesIO()
    Image.fromarray(gradient()).save(target, "PNG")
    data = bytearray(target.getvalue())
    struct.pack_into(">I", data, data.index(b"IDAT") - 4, length)
    began_s = time.perf_counter()
    with pytest.raises(PictureError, match="do not match"):
        read_picture(bytes(data), max_px=MAX_PX)
    assert time.perf_counter() - began_s < 0.1


def test_damaged_files_are_refused_and_nothing_else_happens() -> None:
    random = np.random.default_rng(3)
    files = []
    for form, options in (("PNG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("WEBP", {"lossless": True})):
        target = io.BytesIO()
        Image.fromarray(gradient()).save(target, form, **options)
        files.append(target.getvalue())
    for turn in range(400):
        data = bytearray(files[turn % len(files)])
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(256)
        with suppress(PictureError):
            assert read_picture(bytes(data), max_px=1 << 16).dtype == np.uint8


def test_a_jpeg_of_very_many_scans_is_refused() -> None:
    """Each costs a pass over all pixels for a few bytes."""
    data = pack(gradient(), PictureFormat.JPEG, 90)
    with pytest.raises(PictureError, match="more than 64 scans"):
        unpack(data + b"\xff\xda" * 64, PictureFormat.JPEG, width=32, height=24, max_px=MAX_PX)


def test_an_animated_webp_is_refused() -> None:
    target = io.BytesIO()
    frames = [Image.fromarray(gradient()), Image.fromarray(255 - gradient())]
    frames[0].save(target, "WEBP", save_all=True, append_images=frames[1:], duration=40)
    with pytest.raises(PictureError, match="still WebP"):
        unpack(target.getvalue(), PictureFormat.WEBP, width=32, height=24, max_px=MAX_PX)


def test_bytes_of_no_known_file_are_refused() -> None:
    with pytest.raises(PictureError, match="JPEG, PNG or WebP"):
        read_picture(b"GIF89a", max_px=MAX_PX)
