"""Folders and animations as sources: every frame with its time, what is not read is named, transparency is black."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from app.media.open_source import open_source
from app.media.picture_reader import read_picture
from app.media.source import SourceBrokenError
from app.render.record import fingerprint
from pipelines.core.errors import InputError
from tests.fakes.clips import make_clip
from tests.fakes.heic_files import heic
from tests.fakes.picture_files import corners, saved

TIMES_MS = (40, 100, 250, 40)


def greys(path: Path) -> list[int]:
    return [int(frame.image[4, 4].mean()) for frame in open_source(path, None).frames()]


def animation(path: Path, form: str, **options: object) -> Path:
    frames = [Image.new("RGB", (16, 12), (grey, grey, grey)) for grey in (40, 90, 140, 190)]
    more = {"WEBP": {"lossless": True}, "AVIF": {"quality": 90}}.get(form, {})
    path.write_bytes(
        saved(frames[0], form, save_all=True, append_images=frames[1:], duration=list(TIMES_MS), **more, **options)
    )
    return path


@pytest.mark.parametrize(
    ("name", "form"), [("a.gif", "GIF"), ("a.webp", "WEBP"), ("a.png", "PNG"), ("a.apng", "PNG"), ("a.mp4", "GIF")]
)
def test_an_animation_is_all_its_frames_at_their_times(tmp_path: Path, name: str, form: str) -> None:
    source = open_source(animation(tmp_path / name, form), None)
    frames = list(source.frames())
    assert [abs(int(frame.image.mean()) - grey) <= 2 for frame, grey in zip(frames, (40, 90, 140, 190), strict=True)]
    assert [float(frame.pts * source.info.time_base) for frame in frames] == [0, 0.04, 0.14, 0.39]
    assert [frame.duration for frame in frames] == list(TIMES_MS)
    assert source.info.frames == 4
    assert float(source.info.frame_rate) == pytest.approx(4 / 0.43, rel=0.01)
    assert [frame.index for frame in source.frames(2)] == [2, 3]
    with pytest.raises(InputError, match="keeps its own frame rate"):
        open_source(tmp_path / name, Fraction(10))
    with pytest.raises(InputError, match="animation of 4 frames"):
        read_picture(tmp_path / name)


def test_an_avif_sequence_is_all_its_frames_at_their_times(tmp_path: Path) -> None:
    source = open_source(animation(tmp_path / "a.avif", "AVIF"), None)
    frames = list(source.frames())
    assert [round(int(frame.image.mean()), -1) for frame in frames] == [40, 90, 140, 190]
    assert [float(frame.pts * source.info.time_base) for frame in frames] == [0, 0.04, 0.14, 0.39]
    with pytest.raises(InputError, match="sequence of pictures"):
        read_picture(tmp_path / "a.avif")


def test_the_picture_that_a_png_has_for_old_viewers_is_no_frame(tmp_path: Path) -> None:
    file = animation(tmp_path / "a.png", "PNG", default_image=True)
    assert greys(file) == [90, 140, 190]


def test_frames_without_a_time_last_as_long_as_in_browsers(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (grey, grey, grey)) for grey in (40, 90)]
    (tmp_path / "a.webp").write_bytes(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], duration=0))
    assert [frame.duration for frame in open_source(tmp_path / "a.webp", None).frames()] == [100, 100]


def test_a_damaged_animation_gives_what_is_there_and_says_where(tmp_path: Path) -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), dtype=np.uint8)) for i in range(6)]
    whole = saved(noise[0], "GIF", save_all=True, append_images=noise[1:], duration=100)
    (tmp_path / "a.gif").write_bytes(whole[: len(whole) * 6 // 10])
    given = []
    with pytest.raises(SourceBrokenError, match="beyond frame"):
        given.extend(frame.index for frame in open_source(tmp_path / "a.gif", None).frames())
    assert given
    assert len(given) < 6


def test_a_folder_reads_every_kind_of_picture(tmp_path: Path) -> None:
    names = {
        "1.jpg": "JPEG", "2.JPEG": "JPEG", "3.jfif": "JPEG", "4.png": "PNG", "5.webp": "WEBP", "6.gif": "GIF",
        "7.bmp": "BMP", "8.tif": "TIFF", "9.avif": "AVIF", "10.jpe": "JPEG",
    }  # fmt: skip
    for number, (name, form) in enumerate(names.items()):
        (tmp_path / name).write_bytes(saved(Image.new("RGB", (16, 16), (20 * number,) * 3), form))
    found = [round(grey / 20) for grey in greys(tmp_path)]
    assert found == list(range(10))
    assert open_source(tmp_path, None).info.notes == ()


def test_hidden_files_are_no_pictures_and_others_are_named(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"IMG_{number}.png")
        (tmp_path / f"._IMG_{number}.png").write_bytes(b"\0\5\x16\7")
    Image.new("RGB", (8, 8)).save(tmp_path / ".hidden.png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    assert open_source(tmp_path, None).info.notes == ()
    for name in ("notes.txt", "clip.mp4", "raw.dng"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "more.png").mkdir()
    source = open_source(tmp_path, None)
    assert source.info.frames == 3
    (note,) = source.info.notes
    assert note.endswith(": clip.mp4, more.png, notes.txt, raw.dng.")
    for number in range(9):
        (tmp_path / f"z{number}.txt").write_bytes(b"x")
    assert open_source(tmp_path, None).info.notes[0].endswith("z0.txt and 8 more.")


@pytest.mark.parametrize(
    "name", ["²1.png", "m²1.png", "١٢.png", "①.png", "a\nb.png", "-x.png", "é 3.png", "1" * 200 + ".png"]
)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")
    (tmp_path / name).write_bytes((tmp_path / "2.png").read_bytes())
    assert len(list(open_source(tmp_path, None).frames())) == 2
    assert "2 files" in fingerprint(tmp_path)


def test_a_name_that_is_no_text_is_a_name(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "2.png")
    with open(os.path.join(os.fsencode(tmp_path), b"\xff\xfe.png"), "wb") as file:  # noqa: PTH118, PTH123
        file.write((tmp_path / "2.png").read_bytes())
    assert len(list(open_source(tmp_path, None).frames())) == 2
    assert "2 files" in fingerprint(tmp_path)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG"])
def test_an_animation_among_pictures_is_refused_and_the_remedy_works(tmp_path: Path, form: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    moving = animation(folder / f"2.{form.lower()}", form)
    with pytest.raises(InputError, match=r"2\.\w+ is an animation of 4 frames.*Render it by itself"):
        open_source(folder, None)
    assert open_source(moving.rename(tmp_path / "moved"), None).info.frames == 4
    assert open_source(folder, None).info.frames == 1


def test_a_folder_of_heic_is_read(tmp_path: Path) -> None:
    (tmp_path / "IMG_1.HEIC").write_bytes(heic(quarters=3))
    (tmp_path / "IMG_2.heif").write_bytes(heic())
    assert [frame.image.shape for frame in open_source(tmp_path, None).frames()] == [(100, 90, 3), (90, 100, 3)]
    assert open_source(tmp_path / "IMG_1.HEIC", None).info.size == (90, 100)
    assert read_picture(tmp_path / "IMG_2.heif").shape == (90, 100, 3)


def test_only_the_first_page_of_a_tiff_is_read_and_that_is_said(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (8, 8), (grey,) * 3) for grey in (40, 90)]
    (tmp_path / "a.tif").write_bytes(saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]))
    source = open_source(tmp_path / "a.tif", None)
    assert greys(tmp_path / "a.tif") == [40]
    assert source.info.notes == ("Only the first page is read of a.tif.",)


def test_a_limit_of_pixels_holds_for_pictures_animations_and_videos(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(corners(), "PNG"))
    files = [tmp_path / "a.png", animation(tmp_path / "b.gif", "GIF"), make_clip(tmp_path / "c.mp4", frames=2)]
    for file in files:
        assert open_source(file, None, max_px=64 * 48).info.frames in (1, 2, 4)
        with pytest.raises(InputError, match="Scale it down first"):
            open_source(file, None, max_px=16 * 12 - 1)


@pytest.mark.parametrize(("name", "encoder"), [("a.mp4", "libx264"), ("a.webm", "libvpx-vp9"), ("a.ts", "libx264")])
def test_a_video_above_the_limit_is_refused_and_the_remedy_works(tmp_path: Path, name: str, encoder: str) -> None:
    made = make_clip(tmp_path / name, frames=40, size=(128, 96), sound="", encoder=encoder)
    with pytest.raises(InputError, match=r"(?i)scale it down"):
        open_source(made, None, max_px=64 * 64)
    scaled = make_clip(tmp_path / f"small_{name}", frames=40, size=(64, 48), sound="", encoder=encoder)
    assert len(list(open_source(scaled, None, max_px=64 * 64).frames())) == 40


def test_a_video_whose_frames_grow_is_stopped_before_they_are_decoded(tmp_path: Path) -> None:
    """Motion JPEG: each frame has its own size, whatever the file declares."""
    small, large = (saved(Image.new("RGB", (side, side)), "JPEG") for side in (32, 512))
    (tmp_path / "a.mjpeg").write_bytes(small * 3 + large)
    given = []
    with pytest.raises(SourceBrokenError, match="cannot be decoded beyond frame 3"):
        given.extend(frame.image.shape for frame in open_source(tmp_path / "a.mjpeg", None, max_px=64 * 64).frames())
    assert given == [(32, 32, 3)] * 3


@pytest.mark.parametrize(
    ("name", "encoder", "pixels"),
    [
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mov", "qtrle", "argb"),
        ("a.mov", "png", "rgba"),
        ("a.mkv", "ffv1", "bgra"),
        ("a.mkv", "ffv1", "yuva420p"),
        ("a.avi", "rawvideo", "bgra"),
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.mkv", "libvpx-vp9", "yuva420p"),
        ("a.webm", "libvpx", "yuva420p"),
    ],
)
def test_what_is_transparent_in_a_video_is_black(tmp_path: Path, name: str, encoder: str, pixels: str) -> None:
    image = np.zeros((48, 64, 4), np.uint8)
    image[:] = (230, 20, 230, 255)
    image[:, 32:, 3] = 0
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(encoder, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        if encoder == "libvpx":
            stream.codec_context.options = {"auto-alt-ref": "0"}
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgba")))
        container.mux(stream.encode(None))
    source = open_source(tmp_path / name, None)
    frames = list(source.frames())
    assert len(frames) == 3
    for frame in frames:
        assert frame.image.flags.c_contiguous
        assert frame.image[24, 56].max() <= 2
        assert frame.image[24, 8].tolist() == pytest.approx([230, 20, 230], abs=12)
    assert [frame.index for frame in source.frames(1)] == [1, 2]
