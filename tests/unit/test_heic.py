"""HEIC: the whole picture, not its first tile, turned as the file says, in sRGB; damaged files are refused."""

from __future__ import annotations

import io
import struct
from contextlib import suppress

import numpy as np
import pytest

from app.media import heif
from app.media.picture_error import PictureError
from app.media.picture_file import PictureFile
from pipelines.core.types import Picture
from tests.fakes.heic_files import TILES, heic
from tests.fakes.picture_files import display_p3

COLOURS = list(TILES)


def read(data: bytes, max_px: int = 128 * 128) -> Picture:
    with PictureFile.open(io.BytesIO(data), max_px=max_px) as opened:
        picture = opened.decode()
        assert opened.size == (picture.shape[1], picture.shape[0])
        return picture


def corners(picture: Picture) -> list[int]:
    """Return which tile is at each corner: top left, top right, bottom left, bottom right."""
    found = []
    for row, column in ((4, 4), (4, -4), (-4, 4), (-4, -4)):
        distances = [np.abs(picture[row, column].astype(int) - colour).max() for colour in COLOURS]
        assert min(distances) <= 6
        found.append(int(np.argmin(distances)))
    return found


@pytest.mark.parametrize(
    ("quarters", "mirror", "wanted"),
    [
        (0, None, [0, 1, 2, 3]),
        (1, None, [1, 3, 0, 2]),
        (2, None, [3, 2, 1, 0]),
        (3, None, [2, 0, 3, 1]),
        (0, 0, [2, 3, 0, 1]),
        (0, 1, [1, 0, 3, 2]),
        (3, 1, [0, 2, 1, 3]),
    ],
)
def test_all_tiles_turned_and_then_mirrored(quarters: int, mirror: int | None, wanted: list[int]) -> None:
    picture = read(heic(quarters=quarters, mirror=mirror))
    assert picture.shape == ((100, 90, 3) if quarters % 2 else (90, 100, 3))
    assert corners(picture) == wanted


@pytest.mark.parametrize("size", [(128, 128), (65, 127), (100, 90)])
def test_the_tiles_border_is_where_it_belongs(size: tuple[int, int]) -> None:
    picture = read(heic(size, in_idat=False))
    assert picture.shape == (size[1], size[0], 3)
    assert np.abs(picture[30, 60].astype(int) - COLOURS[0]).max() <= 6
    assert np.abs(picture[30, 64].astype(int) - COLOURS[1]).max() <= 6
    assert np.abs(picture[64, 30].astype(int) - COLOURS[2]).max() <= 6


def test_only_the_clean_aperture_is_shown() -> None:
    """The upper left 100 x 90 px of 128 x 128; then 40 x 30 px around the middle."""
    picture = read(heic((128, 128), aperture=(100, 90, -14, -19), quarters=1))
    assert picture.shape == (100, 90, 3)
    assert corners(picture) == [1, 3, 0, 2]
    assert read(heic((128, 128), aperture=(40, 30, 0, 0))).shape == (30, 40, 3)
    with pytest.raises(PictureError, match="outside the picture"):
        read(heic((128, 128), aperture=(100, 90, 50, 0)))


def test_a_picture_of_one_part_and_every_brand() -> None:
    for brand in (b"heic", b"mif1", b"heix"):
        picture = read(heic((64, 48), tiles=[TILES[COLOURS[1]]], brand=brand, quarters=1))
        assert picture.shape == (64, 48, 3)
        assert corners(picture) == [1, 1, 1, 1]


def test_the_colour_profile_is_used() -> None:
    plain, wide = read(heic()), read(heic(icc=display_p3()))
    assert wide[4, 4, 0] > plain[4, 4, 0] + 5  # red of Display P3 is redder
    assert np.abs(wide[-4, -4].astype(int) - plain[-4, -4]).max() <= 4  # white is white


def test_what_is_transparent_is_black() -> None:
    white, red, blue = TILES[COLOURS[3]], TILES[COLOURS[0]], TILES[COLOURS[2]]
    seen = read(heic((64, 64), tiles=[white], alpha=blue))[32, 32]  # the alpha is its red: 20 of 255
    assert np.abs(seen.astype(int) - 240 * 20 // 255).max() <= 3
    seen = read(heic((64, 64), tiles=[white], alpha=red))[32, 32]
    assert np.abs(seen.astype(int) - 240 * 220 // 255).max() <= 6


def test_sizes_are_bounded_before_anything_is_decoded() -> None:
    with pytest.raises(PictureError, match="30000x30000 px is too large"):
        read(heic((30000, 30000)))
    with pytest.raises(PictureError, match="corrupt"):  # the tile codes more than is allowed
        read(heic((16, 16), tiles=[TILES[COLOURS[0]]]), max_px=32 * 32)
    with pytest.raises(PictureError, match="do not cover"):
        read(heic((129, 100)))


def test_a_grid_of_more_tiles_than_its_picture_needs_is_refused() -> None:
    """Each costs a decoding, and all may be the same."""
    with pytest.raises(PictureError, match="more tiles"):
        read(heic((64, 90)))


def test_items_that_share_their_bytes_do_not_multiply_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "_ITEMS_BYTES", 100)
    with pytest.raises(PictureError, match="too long"):
        read(heic())


def test_what_is_missing_is_said() -> None:
    with pytest.raises(PictureError, match="3 of 4 tiles"):
        read(heic(tiles=list(TILES.values())[:3]))
    with pytest.raises(PictureError, match=r"kind that is not read \('iovl'\).*Save it as JPEG"):
        read(heic().replace(b"grid", b"iovl"))
    with pytest.raises(PictureError, match="cut off"):
        read(heic()[:-40])
    with pytest.raises(PictureError, match="no table"):
        read(heic().replace(b"meta", b"free"))


def test_damaged_files_are_refused_with_words() -> None:
    random, whole = np.random.default_rng(7), heic(quarters=1, icc=display_p3())
    for turn in range(200):
        data = bytearray(whole[: random.integers(40, len(whole))] if turn % 4 == 0 else whole)
        for place in random.integers(32, len(data), 3) if turn % 4 else ():
            data[place] = random.integers(256)
        if turn % 10 == 9:
            struct.pack_into(">I", data, data.index(b"meta") - 4, 0xFFFFFFFF)
        with suppress(PictureError):
            read(bytes(data))
