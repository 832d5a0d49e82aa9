"""Files whose clock restarts, leaps or differs between picture and sound: both go on together, and nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from app.media.clock import SteadyClock, believable, clock_of, steady_packets
from app.media.open_media import open_media
from app.media.open_source import open_source
from app.media.source import SourceBrokenError, SourceFrame
from tests.fakes.clips import make_clip


def read(path: Path) -> list[SourceFrame]:
    return list(open_source(path, None).frames())


JOINED = {".ts": "libx264", ".mpg": "mpeg2video", ".webm": "libvpx"}


@pytest.mark.parametrize("suffix", JOINED)
def test_joined_files_go_on_at_their_pace(tmp_path: Path, suffix: str) -> None:
    sound = {".mpg": "mp2", ".webm": "libopus"}.get(suffix, "aac")
    clip = make_clip(tmp_path / f"a{suffix}", frames=20, sound=sound, encoder=JOINED[suffix])
    parts = 2 if suffix == ".webm" else 3  # of Matroska FFmpeg reads two
    clip.write_bytes(clip.read_bytes() * parts)
    check_pace(clip, 20 * parts)


@pytest.mark.parametrize("start_s", [5 * 3600, 60, 95443.2])
def test_a_clock_that_leaps_is_followed(tmp_path: Path, start_s: float) -> None:
    """95443.2 s: just before a 33-bit clock of 90 kHz begins again."""
    ours = make_clip(tmp_path / "a.ts", frames=20)
    far = make_clip(tmp_path / "b.ts", frames=20, options={"output_ts_offset": str(start_s)})
    (tmp_path / "joined.ts").write_bytes(ours.read_bytes() + far.read_bytes() + ours.read_bytes())
    check_pace(tmp_path / "joined.ts", 60)
    assert open_source(tmp_path / "joined.ts", None).info.frames == pytest.approx(60, rel=0.2)


def check_pace(clip: Path, count: int) -> None:
    """Every frame is there, 40 ms after the one before it, up to a quarter of a second at a join."""
    frames = read(clip)
    tick = open_source(clip, None).info.time_base
    assert [round((float(frame.image.mean()) - 30) / 5) for frame in frames] == [index % 20 for index in range(count)]
    gaps_s = np.diff([float(frame.pts * tick) for frame in frames])
    within = np.delete(gaps_s, list(range(19, count - 1, 20)))
    assert within == pytest.approx(np.full_like(within, 0.04), abs=0.002)
    assert gaps_s.min() > 0.02
    assert gaps_s.max() < 0.25


@pytest.mark.parametrize("leap_s", [4000, 20_000])
@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".mov"])
def test_a_leap_inside_one_file_is_closed(tmp_path: Path, suffix: str, leap_s: int) -> None:
    """Also where the muxer takes it for the duration of the picture before it."""
    times_ms = [40 * index + (1000 * leap_s if index >= 10 else 0) for index in range(20)]
    clip = make_clip(tmp_path / f"a{suffix}", frames=20, pts=times_ms, sound="")
    check_pace(clip, 20)
    tick = open_source(clip, None).info.time_base
    assert max(frame.duration * tick for frame in read(clip)) < 0.1


def test_a_single_picture_lasts_as_long_as_it_says() -> None:
    frame = SourceFrame(index=0, image=np.zeros((2, 2, 3), np.uint8), pts=0, duration=9000)
    assert [shown.duration for shown in believable(iter([frame]), Fraction(1))] == [9000]


def test_what_lasts_too_long_is_given_before_the_file_breaks_off() -> None:
    frame = SourceFrame(index=0, image=np.zeros((2, 2, 3), np.uint8), pts=0, duration=9000)

    def breaking() -> Iterator[SourceFrame]:
        yield frame
        raise SourceBrokenError("a", 1, 0.0, "gone")

    given = []
    with pytest.raises(SourceBrokenError):
        given.extend(believable(breaking(), Fraction(1)))
    assert given == [frame]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_a_picture_that_stands_for_long_is_kept_as_long(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"a{suffix}", frames=3, pts=[0, 1_800_000, 1_801_000], sound="")
    info = open_source(clip, None).info
    assert [round(frame.pts * info.time_base) for frame in read(clip)] == [0, 1800, 1801]


def test_sound_stays_beside_the_picture_across_joins(tmp_path: Path) -> None:
    """Ten joins: what is read of picture and sound ends at the same time, and neither goes back."""
    clip = make_clip(tmp_path / "a.ts", frames=25)
    clip.write_bytes(clip.read_bytes() * 10)
    ends: dict[str, float] = {}
    with open_media(clip) as container:
        for packet in steady_packets(container, clock_of(container)):
            if packet.size and packet.dts is not None:
                at = float(packet.dts * packet.time_base)
                assert at > ends.get(packet.stream.type, -1)
                ends[packet.stream.type] = at
    assert ends["video"] == pytest.approx(ends["audio"], abs=0.25)
    assert 9.5 < ends["video"] < 14


VIDEO, SOUND, PACE = 0, 1, Fraction(1, 25)


def shifted(packets: Sequence[tuple[int, float]], leap_s: Fraction = Fraction(10)) -> list[float]:
    clock = SteadyClock(leap_s)
    return [float(at + clock.shift(stream, Fraction(at), PACE)) for stream, at in packets]


def test_a_steady_clock_leaves_steady_times_alone() -> None:
    packets = [(VIDEO, 1.0), (SOUND, 1.0), (VIDEO, 1.04), (SOUND, 9.0), (VIDEO, 9.0)]
    assert shifted(packets) == [at for _, at in packets]


def test_a_video_that_pauses_while_sound_goes_on_is_no_leap() -> None:
    packets = [(VIDEO, 0.0), *((SOUND, float(second)) for second in range(60)), (VIDEO, 59.0)]
    assert shifted(packets)[-1] == 59


def test_one_wrong_timestamp_does_not_move_the_rest() -> None:
    times = shifted([(VIDEO, 0.0), (VIDEO, 0.04), (VIDEO, 50_000.0), (VIDEO, 0.12), (VIDEO, 0.16)])
    assert times == pytest.approx([0, 0.04, 0.08, 0.12, 0.16])


@pytest.mark.parametrize(("first", "second"), [(VIDEO, SOUND), (SOUND, VIDEO)])
def test_streams_whose_clocks_are_hours_apart_begin_together(first: int, second: int) -> None:
    packets = [(first, 0.0), (second, 90_000.0), (first, 0.04), (second, 90_000.04), (first, 0.08), (second, 90_000.08)]
    assert shifted(packets) == pytest.approx([0, 0.04, 0.04, 0.08, 0.08, 0.12])


def test_a_file_with_two_clocks_begins_with_picture_and_sound(tmp_path: Path) -> None:
    """As from cameras whose picture and sound count from different moments. Each part of a TS joins at its start."""
    far = make_clip(tmp_path / "a.ts", frames=20, sound="", options={"output_ts_offset": "20000"})
    near = make_clip(tmp_path / "b.ts", frames=20)
    (tmp_path / "c.ts").write_bytes(far.read_bytes()[: 188 * 8] + near.read_bytes())
    info = open_source(tmp_path / "c.ts", None).info
    assert float(read(tmp_path / "c.ts")[0].pts * info.time_base) < 0.2
    with open_media(tmp_path / "c.ts") as container:
        packets = [p for p in steady_packets(container, clock_of(container)) if p.size and p.stream.type == "audio"]
        start = packets[0].pts * packets[0].time_base - info.origin_s
    assert abs(float(start)) < 0.5


def test_the_last_packet_before_a_join_may_come_after_the_first_behind_it() -> None:
    """As in MPEG-TS, where a picture is complete when the next one begins."""
    packets = [(VIDEO, 9.92), (SOUND, 9.94), (SOUND, 0.0), (VIDEO, 9.96), (VIDEO, 0.0), (SOUND, 0.04)]
    assert shifted(packets) == pytest.approx([9.92, 9.94, 9.98, 9.96, 9.98, 10.02])
