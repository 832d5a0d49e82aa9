"""Readers of video files and folders of pictures: every frame once, upright, with correct colours and times."""

from __future__ import annotations

import struct
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.media.open_source import open_source
from app.media.source import SourceBrokenError
from pipelines.core.errors import InputError
from pipelines.core.types import Picture
from tests.fakes.clips import grey, make_clip


def test_every_frame_once_with_its_time(tmp_path: Path) -> None:
    source = open_source(make_clip(tmp_path / "a.mp4", frames=30, rate=Fraction(30000, 1001)), None)
    frames = list(source.frames())
    assert [frame.index for frame in frames] == list(range(30))
    assert source.info.frames == 30
    assert source.info.frame_rate == Fraction(30000, 1001)
    assert source.info.has_sound
    for frame in frames:
        assert abs(frame.pts * source.info.time_base - frame.index * Fraction(1001, 30000)) < Fraction(1, 10000)
        assert abs(float(frame.image.mean()) - grey(frame.index)) < 2


def test_starting_late_gives_the_same_frames(tmp_path: Path) -> None:
    source = open_source(make_clip(tmp_path / "a.mp4"), None)
    whole, late = list(source.frames()), list(source.frames(17))
    assert [f.index for f in late] == list(range(17, 30))
    for a, b in zip(whole[17:], late, strict=True):
        assert (a.pts, a.duration) == (b.pts, b.duration)
        assert np.array_equal(a.image, b.image)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_keeps_each_time(tmp_path: Path, suffix: str) -> None:
    times_ms = [0, 40, 55, 140, 141, 400, 1000]
    source = open_source(make_clip(tmp_path / f"a{suffix}", frames=7, pts=times_ms, sound=""), None)
    assert [round(1000 * f.pts * source.info.time_base) for f in source.frames()] == times_ms


def corner(index: int, size: tuple[int, int]) -> Picture:
    image = np.full((size[1], size[0], 3), 40, np.uint8)
    image[: size[1] // 2, : size[0] // 2] = 220  # top left
    return image


@pytest.mark.parametrize(("rotation", "bright"), [(90, (1, 0)), (-90, (0, 1)), (180, (1, 1)), (0, (0, 0))])
def test_rotation_is_honoured(tmp_path: Path, rotation: int, bright: tuple[int, int]) -> None:
    """rotation: degrees counter-clockwise; bright: (row half, column half) in which the top left corner ends up."""
    clip = make_clip(tmp_path / "a.mp4", frames=2, sound="", rotation=rotation, draw=corner)
    source = open_source(clip, None)
    image = next(iter(source.frames())).image
    expected = (64, 48) if rotation % 180 == 0 else (48, 64)
    assert source.info.size == expected
    assert image.shape == (expected[1], expected[0], 3)
    height, width = image.shape[:2]
    halves = image.reshape(2, height // 2, 2, width // 2, 3).mean(axis=(1, 3, 4))
    assert np.unravel_index(halves.argmax(), (2, 2)) == bright


def test_pixel_aspect_is_reported(tmp_path: Path) -> None:
    source = open_source(make_clip(tmp_path / "a.mp4", frames=2, pixel_aspect=Fraction(4, 3)), None)
    assert source.info.pixel_aspect == pytest.approx(4 / 3)


ORANGE = (200, 120, 40)
BT709, BT601, FULL, LIMITED = 1, 6, 2, 1


def orange(index: int, size: tuple[int, int]) -> Picture:
    return np.full((size[1], size[0], 3), ORANGE, np.uint8)


@pytest.mark.parametrize("matrix", [BT601, BT709])
@pytest.mark.parametrize("span", [LIMITED, FULL])
def test_colours_follow_the_tags(tmp_path: Path, matrix: int, span: int) -> None:
    """A plane of known YUV values, tagged with matrix and range; the expected RGB follows the standard's formulas."""
    import av

    y, u, v = 130, 100, 160
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.options = {"qp": "0"}
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        frame = av.VideoFrame(64, 48, "yuv420p")
        for plane, value in zip(frame.planes, (y, u, v), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    kr, kb = (0.2126, 0.0722) if matrix == BT709 else (0.299, 0.114)
    luma = float(y) if span == FULL else (y - 16) * 255 / 219
    scale = 1.0 if span == FULL else 255 / 224
    red = luma + 2 * (1 - kr) * (v - 128) * scale
    blue = luma + 2 * (1 - kb) * (u - 128) * scale
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    image = next(iter(open_source(path, None).frames())).image
    assert image[24, 32].tolist() == pytest.approx([red, green, blue], abs=2)


def test_sound_that_leads_keeps_its_lead(tmp_path: Path) -> None:
    source = open_source(make_clip(tmp_path / "a.mkv", frames=5, pts=[500, 540, 580, 620, 660], sound_s=0.7), None)
    first = next(iter(source.frames()))
    assert float(source.info.origin_s) == pytest.approx(0, abs=0.03)
    assert float(first.pts * source.info.time_base) == pytest.approx(0.5, abs=0.03)


def test_pictures_in_natural_order(tmp_path: Path) -> None:
    for index in (10, 2, 1, 33):
        Image.new("RGB", (8, 6), (index, index, index)).save(tmp_path / f"shot {index}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    source = open_source(tmp_path, Fraction(12))
    assert [int(f.image[0, 0, 0]) for f in source.frames()] == [1, 2, 10, 33]
    assert source.info.frames == 4
    assert source.info.time_base == Fraction(1, 12)
    assert [f.pts for f in source.frames(2)] == [2, 3]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("RGBA", (200, 100, 50, 0), (0, 0, 0)),
        ("I;16", 0x8000, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("P", 3, (3, 3, 3)),
    ],
)
def test_picture_modes(tmp_path: Path, mode: str, value: object, expected: tuple[int, int, int]) -> None:
    image = Image.new("L", (4, 4), 3).convert("P") if mode == "P" else Image.new(mode, (4, 4), value)  # type: ignore[arg-type]
    image.save(tmp_path / "a.png")
    frame = next(iter(open_source(tmp_path / "a.png", None).frames()))
    assert tuple(frame.image[1, 1].tolist()) == expected


def test_a_photograph_on_its_side_is_turned(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    source = open_source(tmp_path, None)
    assert source.info.size == (4, 8)
    assert next(iter(source.frames())).image.shape == (8, 4, 3)


def png_header(path: Path, width: int, height: int) -> Path:
    """Return a PNG file that claims a size but has almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("size", [(20_000, 20_000), (10_000, 10_000), (9_000, 8_000)])
def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path, size: tuple[int, int]) -> None:
    file = png_header(tmp_path / "big.png", *size)
    for source in (tmp_path, file):
        with pytest.raises(InputError, match="Scale it down first"):
            open_source(source, None)


def test_a_huge_picture_named_as_a_video_is_refused_too(tmp_path: Path) -> None:
    file = png_header(tmp_path / "big.mp4", 20_000, 20_000)
    with pytest.raises(InputError, match="Scale it down first"):
        open_source(file, None)


def test_bad_files_each_with_its_message(tmp_path: Path) -> None:
    empty = tmp_path / "empty.mp4"
    empty.touch()
    text = tmp_path / "text.mp4"
    text.write_text("these are words, not a video\n" * 50)
    folder = tmp_path / "folder"
    folder.mkdir()
    broken_folder = tmp_path / "broken"
    broken_folder.mkdir()
    (broken_folder / "a.png").write_bytes(b"not a picture")
    sound = tmp_path / "sound.m4a"
    make_sound(sound)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(make_clip(tmp_path / "whole.mp4").read_bytes()[:2000])
    for path, message in (
        (tmp_path / "missing.mp4", "There is no file or folder"),
        (empty, "is empty (0 bytes)"),
        (text, "is not a video that can be read"),
        (folder, "has no pictures"),
        (broken_folder, "is not a picture that can be read"),
        (sound, "has only sound"),
        (cut, "may be truncated"),
    ):
        with pytest.raises(InputError) as caught:
            open_source(path, None)
        assert message in str(caught.value)
        assert path.name in str(caught.value)


def make_sound(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 4800), np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_frame_rate_for_a_video_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps its own frame rate"):
        open_source(make_clip(tmp_path / "a.mp4", frames=2), Fraction(10))


@pytest.mark.parametrize(("suffix", "options"), [(".mp4", {"movflags": "faststart"}), (".mkv", {})])
def test_a_truncated_video_gives_what_is_there_and_then_says_where(
    tmp_path: Path, suffix: str, options: dict[str, str]
) -> None:
    def noisy(index: int, size: tuple[int, int]) -> Picture:
        return np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)

    whole = make_clip(tmp_path / f"whole{suffix}", frames=100, options=options, draw=noisy)
    data = whole.read_bytes()
    cut = tmp_path / f"cut{suffix}"
    cut.write_bytes(data[: len(data) * 6 // 10])
    source = open_source(cut, None)
    given = []
    with pytest.raises(SourceBrokenError) as caught:
        given.extend(frame.index for frame in source.frames())
    assert given == list(range(caught.value.frame))
    assert 40 <= len(given) <= 70
    assert caught.value.seconds == pytest.approx(len(given) / 25, abs=0.05)
    assert f"beyond frame {len(given)}" in str(caught.value)


def test_a_broken_picture_in_the_middle_says_where(tmp_path: Path) -> None:
    for index in range(4):
        Image.effect_noise((64, 64), 50).save(tmp_path / f"{index}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    frames = open_source(tmp_path, None).frames()
    next(frames)
    next(frames)
    with pytest.raises(SourceBrokenError, match=r"2\.png cannot be decoded beyond frame 2"):
        next(frames)
