"""The one reader of pictures: upright, sRGB, black where transparent, whatever the format; nothing hidden is
allocated."""

from __future__ import annotations

import io
import struct
import time
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image

from app.api.pictures import unpack
from app.api.stream.wire import PictureFormat
from app.media.picture_error import PictureError
from app.media.picture_file import MAX_SCANS, PictureFile, read_still
from pipelines.core.types import Picture
from tests.fakes.picture_files import (
    P3_TO_XYZ,
    chunk,
    corners,
    display_p3,
    exif,
    png_of,
    saved,
    tiff_with_tile,
    zeros,
)

MAX_PX = 64 * 64
TURNS = {  # EXIF orientation -> how a camera that was held so stores what is upright
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def read(data: bytes, max_px: int = MAX_PX) -> Picture:
    with PictureFile.open(io.BytesIO(data), max_px=max_px) as opened:
        picture = opened.decode()
        assert opened.size == (picture.shape[1], picture.shape[0])
        assert picture.flags.c_contiguous
        return picture


def close(picture: Picture, wanted: Picture, tolerance: int = 12) -> None:
    assert picture.shape == wanted.shape
    for row in (6, 26):
        for column in (8, 40) if picture.shape[1] == 48 else (6, 26):
            off = np.abs(picture[row, column].astype(int) - wanted[row, column])
            assert off.max() <= tolerance, (row, column, picture[row, column], wanted[row, column])


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_every_orientation_comes_out_upright(form: str, orientation: int) -> None:
    upright, turn = Image.fromarray(corners()), TURNS[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    options: dict[str, object] = {} if form in ("PNG", "TIFF") else {"quality": 95}
    close(read(saved(stored, form, exif=exif(orientation), **options)), corners())


def test_a_turned_grey_jpeg_and_one_of_many_channels_are_upright_too() -> None:
    for mode in ("L", "CMYK"):
        stored = Image.fromarray(corners()).convert(mode).transpose(Image.Transpose.ROTATE_90)
        picture = read(saved(stored, "JPEG", quality=95, exif=exif(6)))
        wanted = np.asarray(Image.fromarray(corners()).convert(mode).convert("RGB"))
        close(picture, wanted)


def test_a_png_may_say_behind_its_pixels_how_it_lies() -> None:
    stored = saved(Image.fromarray(corners()).transpose(Image.Transpose.ROTATE_90), "PNG")
    end = stored.index(b"IEND") - 4
    close(read(stored[:end] + chunk(b"eXIf", exif(6).tobytes()[6:]) + stored[end:]), corners())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture() -> None:
    close(read(saved(corners(), "JPEG", quality=95, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")), corners())
    close(read(saved(corners(), "PNG", exif=exif(77))), corners())


@pytest.mark.parametrize("announced", [(48, 32), (32, 48)])
def test_the_stream_takes_a_turned_picture_under_its_stored_and_its_shown_size(announced: tuple[int, int]) -> None:
    stored = Image.fromarray(corners()).transpose(Image.Transpose.ROTATE_90)
    for kind in (PictureFormat.JPEG, PictureFormat.WEBP):
        data = saved(stored, kind.name, quality=95, exif=exif(6))
        picture = unpack(data, kind, width=announced[0], height=announced[1], max_px=MAX_PX)
        close(picture, corners())
    for kind in (PictureFormat.JPEG, PictureFormat.WEBP):  # not turned: one size only
        with pytest.raises(PictureError, match="its header says 32x48"):
            unpack(saved(corners(), kind.name), kind, width=32, height=48, max_px=MAX_PX)


def transparent(mode: str) -> Image.Image:
    """Return red that is wholly transparent on the right."""
    made = Image.new("RGBA", (48, 32), (220, 20, 20, 255))
    made.paste((220, 20, 20, 0), (24, 0, 48, 32))
    return made.convert(mode)


@pytest.mark.parametrize(
    ("form", "mode"),
    [*((form, mode) for form in ("PNG", "WEBP", "TIFF", "AVIF") for mode in ("RGBA", "LA")), ("GIF", "RGBA")],
)
def test_what_is_transparent_is_black(form: str, mode: str) -> None:
    options: dict[str, object] = {"WEBP": {"lossless": True, "exact": True}}.get(form, {})
    picture = read(saved(transparent(mode), form, **options))
    assert picture[16, 40].tolist() == [0, 0, 0]
    assert picture[16, 8, 0] > 60


def test_a_colour_that_means_transparent_is_black_and_half_of_it_half() -> None:
    file = saved(Image.new("RGB", (4, 4), (10, 200, 30)), "PNG", transparency=(10, 200, 30))
    assert read(file)[1, 1].tolist() == [0, 0, 0]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    assert read(saved(palette, "PNG", transparency=1))[1, 1].tolist() == [0, 0, 0]
    half = read(saved(Image.new("RGBA", (4, 4), (200, 100, 50, 128)), "PNG"))[1, 1]
    assert np.abs(half.astype(int) - (100, 50, 25)).max() <= 1


def srgb_of_p3(colour: tuple[int, int, int]) -> list[int]:
    """Return what a colour of Display P3 (gamma 2.2) is in sRGB, clipped: by the standards' formulas."""
    linear = np.array([(value / 255) ** (round(2.2 * 256) / 256) for value in colour])
    srgb_to_xyz = np.array(
        [[0.436066, 0.385147, 0.143066], [0.222488, 0.716873, 0.060608], [0.013916, 0.097076, 0.714096]]
    )
    there = np.linalg.inv(srgb_to_xyz) @ np.array(P3_TO_XYZ) @ linear
    there = there.clip(0, 1)
    coded = np.where(there <= 0.0031308, 12.92 * there, 1.055 * there ** (1 / 2.4) - 0.055)
    return [round(float(value) * 255) for value in coded]


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "RGB"), *((form, mode) for form in ("PNG", "WEBP", "TIFF", "AVIF") for mode in ("RGB", "RGBA"))],
)
def test_colours_of_display_p3_become_srgb(form: str, mode: str) -> None:
    colour = (200, 120, 60)
    options: dict[str, object] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}, "AVIF": {"quality": 100}}.get(
        form, {}
    )
    file = saved(Image.new("RGB", (16, 16), colour).convert(mode), form, icc_profile=display_p3(), **options)
    wanted = srgb_of_p3(colour)
    assert max(abs(a - b) for a, b in zip(wanted, colour, strict=True)) > 5
    assert read(file)[8, 8].tolist() == pytest.approx(wanted, abs=4)


PRIMARIES = {  # x and y of red, green and blue, as H.273 has them; white is D65
    1: ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}


def to_xyz(primaries: int) -> np.ndarray:
    """Return the matrix of those primaries, by SMPTE RP 177."""
    columns = np.array([(x / y, 1, (1 - x - y) / y) for x, y in PRIMARIES[primaries]]).T
    white = np.array([0.3127 / 0.3290, 1, (1 - 0.3127 - 0.3290) / 0.3290])
    return columns * np.linalg.solve(columns, white)


def srgb_of(colour: tuple[int, int, int], primaries: int) -> list[int]:
    coded = np.array(colour) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    there = np.linalg.solve(to_xyz(1), to_xyz(primaries) @ linear).clip(0, 1)
    back = np.where(there <= 0.0031308, 12.92 * there, 1.055 * there ** (1 / 2.4) - 0.055)
    return [round(float(value) * 255) for value in back]


@pytest.mark.parametrize("primaries", PRIMARIES)
@pytest.mark.parametrize("form", ["PNG", "AVIF"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colours_told_by_code_points_become_srgb(form: str, mode: str, primaries: int) -> None:
    wanted = srgb_of((200, 120, 60), primaries)
    image = Image.new("RGB", (16, 16), (200, 120, 60)).convert(mode)
    assert read(with_points(image, form, primaries, 13))[8, 8].tolist() == pytest.approx(wanted, abs=3)


@pytest.mark.parametrize("form", ["PNG", "AVIF"])
@pytest.mark.parametrize("transfer", [16, 18])
def test_hdr_pictures_say_what_to_do(form: str, transfer: int) -> None:
    with pytest.raises(PictureError, match=r"HDR \((PQ|HLG)\)\. Export it as SDR"):
        read(with_points(Image.new("RGB", (16, 16)), form, 9, transfer))


def with_points(image: Image.Image, form: str, primaries: int, transfer: int) -> bytes:
    if form == "PNG":
        data = saved(image, "PNG")
        return data[:33] + chunk(b"cICP", bytes([primaries, transfer, 0, 1])) + data[33:]
    data = bytearray(saved(image, "AVIF", quality=100))
    at = data.index(b"colrnclx") + 8
    struct.pack_into(">HH", data, at, primaries, transfer)
    return bytes(data)


def test_pictures_of_floating_point_numbers_say_what_to_do() -> None:
    with pytest.raises(PictureError, match=r"floating-point numbers.*8 or 16 bits"):
        read(saved(Image.new("F", (8, 8), 0.5), "TIFF"))


def test_a_damaged_profile_and_one_of_other_colours_are_ignored() -> None:
    for profile in (b"no profile", display_p3()[:200], display_p3().replace(b"RGB ", b"CMYK")):
        assert read(saved(Image.new("RGB", (16, 16), (200, 120, 60)), "PNG", icc_profile=profile))[8, 8].tolist() == [
            200,
            120,
            60,
        ]


def test_only_what_holds_pixels_is_read_of_a_png() -> None:
    """Of a file of 16x16 px that hides 64 MB, nothing but the pixels is inflated."""
    hidden, pixels = zeros(64 << 20), chunk(b"IDAT", zeros(1 << 20))
    tracemalloc.start()
    for parts in (
        (chunk(b"zTXt", b"a\0\0" + hidden), pixels),
        (pixels, chunk(b"zTXt", b"a\0\0" + hidden)),
        (chunk(b"iTXt", b"a\0\1\0\0\0" + hidden), pixels),
        (chunk(b"IDAT", hidden),),
    ):
        began_s = time.perf_counter()
        assert read_still(png_of(*parts), max_px=MAX_PX).shape == (16, 16, 3)
        assert time.perf_counter() - began_s < 1
    with pytest.raises(PictureError, match="too large"):
        read_still(png_of(chunk(b"iCCP", b"a\0\0" + hidden), pixels), max_px=MAX_PX)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_tile_that_is_larger_than_the_picture_is_refused() -> None:
    assert read(tiff_with_tile(32)).shape == (16, 16, 3)
    with pytest.raises(PictureError, match="32768x32768 px is too large"):
        read(tiff_with_tile(32768))


def test_an_avif_that_declares_less_than_it_codes_is_refused() -> None:
    data = bytearray(saved(Image.new("RGB", (512, 512)), "AVIF", quality=10, speed=10))
    struct.pack_into(">II", data, data.index(b"ispe") + 8, 16, 16)
    with pytest.raises(PictureError, match="512x512 px is too large"):
        read(bytes(data))


def test_a_webp_whose_frame_is_larger_than_its_canvas_is_refused() -> None:
    data = bytearray(saved(Image.new("RGB", (512, 512)), "WEBP"))
    data[12:12] = b"VP8X" + struct.pack("<II", 10, 0) + (15).to_bytes(3, "little") * 2
    struct.pack_into("<I", data, 4, len(data) - 8)
    with pytest.raises(PictureError, match="512x512 px is too large"):
        read(bytes(data))


def test_a_gif_whose_frame_is_larger_than_its_screen_is_refused() -> None:
    data = bytearray(saved(Image.new("P", (16, 16)), "GIF"))
    struct.pack_into("<HH", data, data.index(b"\x2c") + 5, 9000, 9000)
    with pytest.raises(PictureError, match="9000x9000 px is too large"):
        read(bytes(data))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_no_picture_to_send(form: str) -> None:
    frames = [Image.fromarray(corners()), Image.fromarray(255 - corners())]
    data = saved(frames[0], form, save_all=True, append_images=frames[1:], duration=40)
    with pytest.raises(PictureError, match=r"is animated|is GIF, not JPEG, PNG or WebP"):
        read_still(data, max_px=MAX_PX)


def test_formats_that_are_not_taken_say_which_are() -> None:
    for form in ("GIF", "BMP", "TIFF", "AVIF"):
        with pytest.raises(PictureError, match="Send a JPEG, PNG or WebP file"):
            read_still(saved(corners(), form), max_px=MAX_PX)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_damaged_files_of_every_format_are_refused_with_words(form: str) -> None:
    random = np.random.default_rng(5)
    whole = saved(corners(), form, exif=exif(6)) if form not in ("GIF", "BMP") else saved(corners(), form)
    for turn in range(120):
        data = bytearray(whole[: random.integers(8, len(whole))] if turn % 3 == 0 else whole)
        for place in random.integers(8, len(data), 4) if turn % 3 and len(data) > 8 else ():
            data[place] = random.integers(256)
        with suppress(PictureError):
            read(bytes(data), 1 << 16)


def test_a_jpeg_of_many_scans_is_refused_whatever_its_colours() -> None:
    data = saved(Image.fromarray(corners()).convert("CMYK"), "JPEG") + b"\xff\xda" * (MAX_SCANS + 1)
    with pytest.raises(PictureError, match="scans"):
        read(data)
