"""The writers: frames, times and sound are written; after a kill, pause or full disk a file plays and can be
continued."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from app.media.containers import CONTAINERS, container_for
from app.media.picture_writer import PictureWriter
from app.media.sound_choice import Sound
from app.media.video_writer import VideoPlan, VideoWriter
from app.media.writer import writing
from pipelines.core.errors import OutputError
from tests.fakes.clips import grey, make_clip, picture, play

TIME_BASE = Fraction(1, 12800)
STEP = 512  # 25 frames a second


def opened(
    output: Path, *, sound: Path | None = None, keep: bool = False, keep_last_piece: bool = False, size: int = 64
) -> VideoWriter:
    scratch = output.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    plan = VideoPlan(
        kind=CONTAINERS[output.suffix],
        size=(size, 48),
        frame_rate=Fraction(25),
        time_base=TIME_BASE,
        sound=Sound(path=sound, origin_s=Fraction(0)) if sound is not None else None,
    )
    return VideoWriter(output, scratch, plan, keep=keep, keep_last_piece=keep_last_piece)


def add(writer: VideoWriter, first: int, end: int) -> None:
    for index in range(first, end):
        writer.write(picture(index), index * STEP, STEP)


@pytest.mark.parametrize("suffix", list(CONTAINERS))
def test_a_paused_file_plays_and_goes_on_without_a_seam(tmp_path: Path, suffix: str) -> None:
    sound = make_clip(tmp_path / "source.mp4", frames=80)
    output = tmp_path / f"out{suffix}"
    writer = opened(output, sound=sound)
    add(writer, 0, 47)
    writer.suspend()
    paused = play(output)
    assert len(paused.greys) == 47
    assert paused.duration_s == pytest.approx(47 / 25, abs=0.04)
    assert paused.sound_s == pytest.approx(47 / 25, abs=0.04)
    writer = opened(output, sound=sound, keep=True, keep_last_piece=True)
    assert writer.frames == 47
    add(writer, 47, 80)
    writer.finish(complete=True)
    played = play(output)
    assert played.greys == pytest.approx([grey(k) for k in range(80)], abs=2.5)
    assert played.times_s == pytest.approx([k / 25 for k in range(80)], abs=0.002)
    assert played.duration_s == pytest.approx(3.2, abs=0.04)
    assert played.sound_codec == ("opus" if suffix == ".webm" else "aac")
    assert played.sound_s == pytest.approx(3.2, abs=0.04)


@pytest.mark.parametrize("suffix", list(CONTAINERS))
def test_a_file_cut_anywhere_goes_on_from_its_last_whole_piece(tmp_path: Path, suffix: str) -> None:
    """A file without its end, as after SIGKILL."""
    output = tmp_path / f"out{suffix}"
    writer = opened(output, sound=make_clip(tmp_path / "source.mp4", frames=100))
    add(writer, 0, 100)
    writer.suspend()
    data = output.read_bytes()
    for share in (0.5, 0.77, 0.9):  # 0.77: inside the header of an MP4 fragment
        output.write_bytes(data[: int(len(data) * share)])
        writer = opened(output, keep=True)
        kept = writer.frames
        assert 25 <= kept < 100
        assert kept % 25 == 0  # a piece is a second
        add(writer, kept, 100)
        writer.finish(complete=True)
        assert play(output).greys == pytest.approx([grey(k) for k in range(100)], abs=2.5)


def test_the_final_mp4_has_its_index_in_front_and_one_piece(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    writer = opened(output)
    add(writer, 0, 60)
    assert b"moof" in output.read_bytes() or output.stat().st_size == 0
    writer.finish(complete=True)
    data = output.read_bytes()
    assert b"moof" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    assert not list((tmp_path / "scratch").iterdir())


def test_colours_survive(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    writer = opened(output)
    colour = np.array([200, 120, 40], np.uint8)
    for index in range(3):
        writer.write(np.tile(colour, (48, 64, 1)), index * STEP, STEP)
    writer.finish(complete=True)
    with av.open(str(output)) as container:
        frame = next(container.decode(video=0))
        assert (frame.colorspace, frame.color_range) == (1, 1)  # BT.709, limited
        assert frame.to_ndarray(format="rgb24")[24, 32].tolist() == pytest.approx(colour.tolist(), abs=4)


def test_irregular_times_and_the_last_duration_are_kept(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    writer = opened(output)
    times = [0, 100, 5000, 5001, 20_000]
    for pts, following in zip(times, [*times[1:], 30_000], strict=True):
        writer.write(picture(0), pts, following - pts)
    writer.finish(complete=True)
    played = play(output)
    assert played.times_s == pytest.approx([pts / 12800 for pts in times], abs=1e-4)
    assert played.duration_s == pytest.approx(30_000 / 12800, abs=0.002)


@pytest.mark.parametrize(("codec", "suffix", "copied"), [("mp3", ".mp4", True), ("pcm_s16le", ".mp4", False)])
def test_sound_is_copied_where_the_container_takes_it(tmp_path: Path, codec: str, suffix: str, copied: bool) -> None:
    source = make_clip(tmp_path / "source.mkv", frames=50, sound="libmp3lame" if codec == "mp3" else codec)
    output = tmp_path / f"out{suffix}"
    writer = opened(output, sound=source)
    add(writer, 0, 50)
    writer.finish(complete=True)
    played = play(output)
    assert played.sound_codec in ({codec, f"{codec}float"} if copied else {"aac"})
    assert played.sound_s == pytest.approx(2.0, abs=0.05)
    assert played.times_s[0] == pytest.approx(0, abs=0.001)


def test_incomplete_output_has_its_sound_trimmed_complete_one_has_all(tmp_path: Path) -> None:
    source = make_clip(tmp_path / "source.mp4", frames=50, sound_s=4.0)
    for complete, expected_s in ((False, 1.2), (True, 4.0)):
        output = tmp_path / f"{complete}.mp4"
        writer = opened(output, sound=source)
        add(writer, 0, 30)
        writer.finish(complete=complete)
        assert play(output).sound_s == pytest.approx(expected_s, abs=0.03)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Limit files of this process to `size` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fill(writer: VideoWriter) -> None:
    random = np.random.default_rng(0)
    for index in range(2000):
        writer.write(random.integers(0, 255, (48, 64, 3), dtype=np.uint8), index * STEP, STEP)


@pytest.mark.parametrize("limit", [200_000, 200_100, 200_500, 300_001])
@pytest.mark.parametrize("suffix", list(CONTAINERS))
def test_a_file_that_cannot_grow_is_an_output_error_and_plays(tmp_path: Path, suffix: str, limit: int) -> None:
    output = tmp_path / f"out{suffix}"
    with largest_file(limit):
        writer = opened(output)
        with pytest.raises(OutputError, match="What was written stays playable"):
            fill(writer)
        writer.abandon()
    kept = len(play(output).greys)
    assert kept >= 25
    resumed = opened(output, keep=True)
    assert resumed.frames > 0
    resumed.abandon()


def test_a_take_that_cannot_be_written_further_is_not_sent_to_resume(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    plan = VideoPlan(
        kind=CONTAINERS[".mp4"],
        size=(64, 48),
        frame_rate=Fraction(25),
        time_base=TIME_BASE,
        sound=None,
        resumable=False,
    )
    with largest_file(200_000):
        writer = VideoWriter(tmp_path / "out.mp4", tmp_path / "scratch", plan, keep=False, keep_last_piece=False)
        with pytest.raises(OutputError, match="What was written stays playable; start over with --force"):
            fill(writer)
        writer.abandon()


def test_a_file_that_cannot_take_its_first_piece_does_not_claim_to_play(tmp_path: Path) -> None:
    with largest_file(100):
        writer = opened(tmp_path / "out.mp4")
        with pytest.raises(OutputError, match="Nothing was written") as caught:
            fill(writer)
        writer.abandon()
    assert "--resume" not in str(caught.value)


def test_a_full_disk_says_so() -> None:
    with (
        pytest.raises(OutputError, match="The disk is full"),
        writing(Path("/dev/full")),
        Path("/dev/full").open("wb") as f,
    ):
        f.write(b"x" * 100_000)


def test_pictures_are_whole_or_absent_and_continue(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    writer = PictureWriter(folder, resume=False)
    for index in range(3):
        writer.write(picture(index), 0, 1)
    assert sorted(file.name for file in folder.iterdir()) == ["000000.png", "000001.png", "000002.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "000001.png")), picture(1))
    (folder / "000001.png").unlink()
    assert PictureWriter(folder, resume=True).frames == 1
    assert PictureWriter(folder, resume=False).frames == 0
    assert list(folder.iterdir()) == []


def test_a_picture_that_cannot_be_written_leaves_no_part(tmp_path: Path) -> None:
    writer = PictureWriter(tmp_path / "frames", resume=False)
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    with largest_file(1000), pytest.raises(OutputError):
        writer.write(noise, 0, 1)
    assert list((tmp_path / "frames").iterdir()) == []


def test_suffixes() -> None:
    assert container_for(Path("a.MKV"), named_as_folder=False) is CONTAINERS[".mkv"]
    assert container_for(Path("frames"), named_as_folder=False) is None
    assert container_for(Path("a.b"), named_as_folder=True) is None
    with pytest.raises(OutputError, match=r"ends in \.avi, which is not supported"):
        container_for(Path("a.avi"), named_as_folder=False)
