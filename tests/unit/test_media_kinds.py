"""Videos as cameras, phones, broadcasters and editors make them: shown as a player shows them."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from app.media.open_media import FormatError
from app.media.open_source import open_source
from app.media.orientation import Orientation
from app.media.source import SourceFrame
from pipelines.core.errors import InputError
from pipelines.core.types import Picture
from tests.fakes.clips import grey, make_clip, picture

MATRICES = {  # (a, b, c, d) of a display matrix -> the rows of "AB" over "CD", as shown
    (1, 0, 0, 1): ("AB", "CD"),
    (-1, 0, 0, 1): ("BA", "DC"),
    (1, 0, 0, -1): ("CD", "AB"),
    (-1, 0, 0, -1): ("DC", "BA"),
    (0, 1, 1, 0): ("AC", "BD"),
    (0, 1, -1, 0): ("CA", "DB"),
    (0, -1, 1, 0): ("BD", "AC"),
    (0, -1, -1, 0): ("DB", "CA"),
}
SHADES = {"A": 40, "B": 100, "C": 160, "D": 220}


def read(path: Path) -> list[SourceFrame]:
    return list(open_source(path, None).frames())


def quarters(image: Picture) -> tuple[str, str]:
    """The letters of a picture's quarters, by the nearest shade."""
    height, width = image.shape[0] // 2, image.shape[1] // 2
    means = image.reshape(2, height, 2, width, 3).mean(axis=(1, 3, 4))
    rows = ["".join(min(SHADES, key=lambda name: abs(SHADES[name] - mean)) for mean in row) for row in means]
    return rows[0], rows[1]


def lettered(index: int, size: tuple[int, int]) -> Picture:
    shades = np.array([[SHADES["A"], SHADES["B"]], [SHADES["C"], SHADES["D"]]], np.uint8)
    grown = shades.repeat(size[1] // 2, axis=0).repeat(size[0] // 2, axis=1)
    return np.repeat(grown[:, :, None], 3, axis=2)


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
@pytest.mark.parametrize("matrix", MATRICES, ids=str)
def test_a_picture_is_turned_and_mirrored_as_its_display_matrix_says(
    tmp_path: Path, matrix: tuple[int, int, int, int], suffix: str
) -> None:
    clip = make_clip(tmp_path / f"a{suffix}", frames=1, sound="", draw=lettered, pixel_aspect=Fraction(4, 3))
    data = clip.read_bytes()
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value << 16 for value in matrix)
    clip.write_bytes(data[:at] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[at + 36 :])
    source = open_source(clip, None)
    image = next(iter(source.frames())).image
    lying = matrix[0] == 0
    assert source.info.size == ((48, 64) if lying else (64, 48))
    assert source.info.pixel_aspect == pytest.approx(3 / 4 if lying else 4 / 3)
    assert quarters(image) == MATRICES[matrix]


@pytest.mark.parametrize("degrees", [-40, 0, 30])
def test_an_odd_angle_becomes_the_nearest_quarter_turn(degrees: float) -> None:
    turn = np.deg2rad(degrees)
    cos, sin = (round(value * 65536) for value in (np.cos(turn), np.sin(turn)))
    assert Orientation.from_matrix((cos, sin, 0, -sin, cos, 0, 0, 0, 1 << 30)) == Orientation()


COLUMNS = 96


def bar(index: int, size: tuple[int, int]) -> Picture:
    """A bar that moves on by 4 pixels between the moments of the two fields."""
    image = np.full((size[1], size[0], 3), 40, np.uint8)
    for field in (0, 1):
        left = 8 * index + 4 * field
        image[field::2, left : left + 16] = 220
    return image


def whole_bar(index: int, size: tuple[int, int]) -> Picture:
    image = np.full((size[1], size[0], 3), 40, np.uint8)
    image[:, 8 * index : 8 * index + 16] = 220
    return image


def combing(image: Picture) -> float:
    """How much neighbouring rows differ, on average."""
    return float(np.abs(np.diff(image[8:-8].astype(int), axis=0)).mean())


INTERLACED = {
    ".mpg": ("mpeg2video", {"flags": "+ildct+ilme", "b": "4M"}),
    ".ts": ("mpeg2video", {"flags": "+ildct+ilme", "b": "4M"}),
    ".mkv": ("libx264", {"flags": "+ildct+ilme", "x264-params": "tff=1:bframes=2", "crf": "5"}),
    ".mp4": ("libx264", {"flags": "+ildct+ilme", "x264-params": "bff=1", "crf": "5"}),
}


def encode(path: Path, encoder: str, options: dict[str, str], frames: Sequence[av.VideoFrame], **tags: int) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=25)
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        stream.codec_context.options = options
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def yuv(image: Picture) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")


@pytest.mark.parametrize("suffix", INTERLACED)
def test_interlaced_pictures_are_made_whole(tmp_path: Path, suffix: str) -> None:
    size, (encoder, options) = (COLUMNS, 64), INTERLACED[suffix]
    clip = encode(tmp_path / f"a{suffix}", encoder, options, [yuv(bar(index, size)) for index in range(8)])
    frames = read(clip)
    info = open_source(clip, None).info
    assert len(frames) == 8
    assert info.frame_rate == 25
    times_ms = [round(1000 * frame.pts * info.time_base) for frame in frames]
    assert np.diff(times_ms).tolist() == pytest.approx([40] * 7, abs=1)
    for index, frame in enumerate(frames):
        assert combing(frame.image) < 0.3 * combing(bar(index, size))


@pytest.mark.parametrize("suffix", [".mpg", ".mkv"])
def test_pictures_that_are_whole_stay_as_they_are_decoded(tmp_path: Path, suffix: str) -> None:
    """Fine horizontal stripes, which a deinterlacer would take for combing."""

    def striped(index: int, size: tuple[int, int]) -> Picture:
        image = whole_bar(index, size)
        image[::2] //= 2
        return image

    size, (encoder, options) = (COLUMNS, 64), INTERLACED[suffix]
    options = {name: value for name, value in options.items() if name not in ("flags", "x264-params")}
    clip = encode(tmp_path / f"a{suffix}", encoder, options, [yuv(striped(index, size)) for index in range(4)])
    for index, frame in enumerate(read(clip)):
        assert np.abs(frame.image.astype(int) - striped(index, size)).mean() < 12


def test_a_change_of_size_in_interlaced_material_loses_no_frame(tmp_path: Path) -> None:
    encoder, options = INTERLACED[".mkv"]
    parts = []
    for number, size in enumerate(((96, 64), (64, 96))):
        frames = [yuv(bar(index, size)) for index in range(4)]
        parts.append(encode(tmp_path / f"{number}.ts", encoder, options, frames).read_bytes())
    (tmp_path / "a.ts").write_bytes(b"".join(parts))
    shapes = [frame.image.shape[:2] for frame in read(tmp_path / "a.ts")]
    assert shapes == [(64, 96)] * 4 + [(96, 64)] * 4


@pytest.mark.parametrize("marked", [0, 1])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_the_default_track_is_read(tmp_path: Path, suffix: str, marked: int) -> None:
    clip = two_tracks(tmp_path / f"a{suffix}", sizes=((64, 48), (96, 64)), marked=marked)
    assert open_source(clip, None).info.size == ((64, 48), (96, 64))[marked]
    assert {frame.image.shape[:2] for frame in read(clip)} == {((48, 64), (64, 96))[marked]}


@pytest.mark.parametrize("sizes", [((64, 48), (96, 64)), ((96, 64), (64, 48))])
def test_without_a_mark_the_largest_is_read(tmp_path: Path, sizes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    clip = two_tracks(tmp_path / "a.ts", sizes=sizes, marked=None)
    assert open_source(clip, None).info.size == (96, 64)


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    clip = two_tracks(tmp_path / "a.mp4", sizes=((96, 64), (64, 48)), marked=0, cover=True)
    assert open_source(clip, None).info.size == (64, 48)


def two_tracks(
    path: Path, *, sizes: tuple[tuple[int, int], tuple[int, int]], marked: int | None, cover: bool = False
) -> Path:
    """cover: the first is a picture of the album."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for number, size in enumerate(sizes):
            art = cover and number == 0
            stream: Any = container.add_stream("mjpeg" if art else "libx264", rate=25)
            stream.width, stream.height = size
            stream.pix_fmt = "yuvj420p" if art else "yuv420p"
            disposition = av.stream.Disposition.default if number == marked else av.stream.Disposition(0)
            stream.disposition = av.stream.Disposition.attached_pic if art else disposition
            streams.append(stream)
        for index in range(3):
            for number, stream in enumerate(streams):
                if cover and number == 0 and index:
                    continue
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index, sizes[number]))))
        for stream in streams:
            container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov", ".webm", ".avi"])
@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(1, 10)])
def test_slow_videos_are_whole(tmp_path: Path, suffix: str, rate: Fraction) -> None:
    encoder = {".webm": "libvpx", ".avi": "mpeg4"}.get(suffix, "libx264")
    clip = make_clip(tmp_path / f"a{suffix}", frames=12, rate=rate, sound="", encoder=encoder)
    frames = read(clip)
    info = open_source(clip, None).info
    assert [round(frame.pts * info.time_base * rate) for frame in frames] == list(range(12))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_few_pictures_with_longer_sound_are_whole(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"a{suffix}", frames=3, pts=[0, 500, 3000], sound_s=6)
    assert len(read(clip)) == 3


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_a_late_start_is_not_counted_as_frames(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"a{suffix}", frames=50, options={"output_ts_offset": "100"})
    info = open_source(clip, None).info
    assert info.frames == pytest.approx(50, rel=0.1)
    assert len(read(clip)) == 50


@pytest.mark.parametrize("sound_s", [None, 3])
@pytest.mark.parametrize("suffix", [".mkv", ".webm"])
def test_a_cut_file_is_still_noticed(tmp_path: Path, suffix: str, sound_s: float | None) -> None:
    webm = suffix == ".webm"

    def noise(index: int, size: tuple[int, int]) -> Picture:
        return np.random.default_rng(index).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)

    clip = make_clip(
        tmp_path / f"a{suffix}",
        frames=60,
        draw=noise,
        sound="libopus" if webm else "aac",
        sound_s=sound_s,
        encoder="libvpx" if webm else "libx264",
    )
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cannot be decoded beyond frame"):
        read(clip)


@pytest.mark.parametrize("name", ["clip 12:30.mp4", "http:a.mkv", "concat:b.ts", "c:d:e.webm"])
def test_a_relative_name_may_have_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    webm = name.endswith("webm")
    clip = make_clip(
        tmp_path / f"plain{Path(name).suffix}", frames=4, sound="", encoder="libvpx" if webm else "libx264"
    )
    clip.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert [round(float(frame.image.mean())) for frame in read(Path(name))] == pytest.approx(
        [grey(index) for index in range(4)], abs=2
    )


def test_what_the_refusal_says_works(tmp_path: Path) -> None:
    """A recording of Windows TV is refused with a remedy; the remedy, followed by copying, gives every picture."""
    film = make_clip(tmp_path / "a.wtv", frames=6, sound="", encoder="mpeg2video")
    with pytest.raises(FormatError, match="Convert it to MP4 or Matroska"):
        open_source(film, None)
    with av.open(str(film)) as source, av.open(str(tmp_path / "a.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    assert len(read(tmp_path / "a.mkv")) == 6


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\na.ts\n#EXT-X-ENDLIST\n",
    "hls to the network": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile a.ts\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 7159 RTP/AVP 96\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    "words": "nothing but words\n" * 40,
}


@pytest.mark.parametrize("suffix", [".mp4", ".m3u8", ".txt", ""])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_lists_of_other_files_are_not_opened(tmp_path: Path, kind: str, suffix: str) -> None:
    make_clip(tmp_path / "a.ts", frames=4)
    file = tmp_path / f"list{suffix}"
    file.write_text(PLAYLISTS[kind])
    with pytest.raises(InputError, match="onvert it to MP4"):
        open_source(file, None)


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_the_refusal_names_the_formats(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.mp4"
    file.write_text(PLAYLISTS[kind])
    with pytest.raises(InputError) as caught:
        open_source(file, None)
    assert isinstance(caught.value, FormatError) == (kind in ("concat", "sdp"))
    assert "Errno" not in str(caught.value)
    assert "file:" not in str(caught.value)
    for name in ("a.mp4", "MP4, MOV", "Matroska, WebM", "AVI", "MPEG-TS"):
        assert name in str(caught.value)
