"""Recording: times of pictures, sound in sync, what a kill or a full disk leaves, and rejected frames."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from app.outputs import record, recording_file
from app.outputs.frame_queue import FrameQueue
from app.outputs.output import OutputPhase
from app.outputs.record import Recording, RecordingOptions
from app.outputs.recording_sound import SoundFormat, SoundTrack
from pipelines.core.errors import InputError, OutputError
from pipelines.core.types import Frame
from tests.fakes.clips import grey, picture, play

MS = 1_000_000
RATE_HZ = 48_000


def frame(index: int, captured_ms: int | None = None, size: tuple[int, int] = (32, 24)) -> Frame:
    captured_ns = None if captured_ms is None else captured_ms * MS
    return Frame(image=picture(index, size), pts=index, time_base=Fraction(1, 25), seq=index, captured_ns=captured_ns)


def soon(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


def offered(recording: Recording, frame: Frame, arrived_ms: int) -> None:
    """Offer a frame when the queue has room: these tests are about the times that frames carry."""
    soon(lambda: len(recording._queue._frames) < 20)
    recording.offer(frame, arrived_ms * MS)


def recorded(path: Path) -> Recording:
    return Recording(RecordingOptions(path=path))


def test_pictures_stand_at_the_times_of_their_capture(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "out.mp4")
    times_ms = [5000, 5040, 5300, 5301, 6700]
    for index, captured_ms in enumerate(times_ms):
        offered(recording, frame(index, captured_ms), captured_ms + 90 * index)  # the latency wanders
    recording.stop()
    played = play(tmp_path / "out.mp4")
    assert played.times_s == pytest.approx([(ms - 5000) / 1000 for ms in times_ms], abs=2e-5)
    assert played.duration_s == pytest.approx(1.7 + 1.399, abs=0.002)
    assert played.greys == pytest.approx([grey(index) for index in range(5)], abs=2.5)
    reading = recording.read()
    assert (reading.phase, reading.done, reading.dropped) == (OutputPhase.STOPPED, 5, 0)
    assert reading.text == "recorded 3.1 s to out.mp4"


def test_generated_pictures_stand_at_their_arrival_and_times_only_grow(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "out.mp4")
    offered(recording, frame(0), 1000)
    offered(recording, frame(1), 1100)
    offered(recording, frame(2, captured_ms=1050), 1200)  # the source became a camera: captured before 1100
    offered(recording, frame(3, captured_ms=1150), 1300)
    recording.stop()
    assert play(tmp_path / "out.mp4").times_s == pytest.approx([0, 0.1, 0.101, 0.15], abs=2e-5)


def test_the_finished_file_is_an_ordinary_one_of_even_size(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "out.mp4")
    for index in range(60):
        offered(recording, frame(index, 40 * index, size=(33, 25)), 40 * index)
    offered(recording, frame(60, 2400, size=(64, 64)), 2400)  # the stream was opened again, larger
    recording.stop()
    played = play(tmp_path / "out.mp4")
    assert (played.size, len(played.greys)) == ((32, 24), 61)
    data = (tmp_path / "out.mp4").read_bytes()
    assert b"moof" not in data
    assert data.index(b"moov") < data.index(b"mdat")
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    with av.open(str(tmp_path / "out.mp4")) as container:
        first = next(container.decode(video=0))
        assert (first.colorspace, first.color_range) == (1, 1)  # BT.709, limited


def test_what_has_not_been_taken_is_turned_away_newest_first_and_counted() -> None:
    queue = FrameQueue(2)
    assert [queue.offer(frame(index), index) for index in range(4)] == [True, True, False, False]
    queue.close()
    taken = [queue.take(0) for _ in range(3)]
    assert [arrived.frame.seq if arrived else None for arrived in taken] == [0, 1, None]
    assert (queue.rejected, queue.done) == (2, True)


def test_a_slow_disk_costs_the_newest_frames_and_they_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = recording_file.RecordingFile.write_picture

    def slow(self: recording_file.RecordingFile, image: np.ndarray, pts: int, duration: int) -> None:
        time.sleep(0.02)
        write(self, image, pts, duration)

    monkeypatch.setattr(recording_file.RecordingFile, "write_picture", slow)
    recording = Recording(RecordingOptions(path=tmp_path / "out.mp4", max_queued_frames=4))
    began_s = time.monotonic()
    for index in range(200):
        recording.offer(frame(index, 40 * index), 40 * index * MS)
    assert time.monotonic() - began_s < 0.5  # offering never blocks
    recording.stop()
    reading = recording.read()
    assert reading.done + reading.dropped == 200
    assert 4 <= reading.done < 40
    played = play(tmp_path / "out.mp4")
    assert len(played.greys) == reading.done
    assert played.greys[:4] == pytest.approx([grey(index) for index in range(4)], abs=2.5)  # the oldest are kept


# ---- sound ----


def click(at_ms: int, length_ms: int = 1000) -> np.ndarray:
    """Return silence with 10 ms of full amplitude."""
    samples = np.zeros((1, length_ms * 48), np.int16)
    samples[0, at_ms * 48 : (at_ms + 10) * 48] = 20_000
    return samples


def loud_s(path: Path) -> list[float]:
    """Return when the sound becomes loud."""
    with av.open(str(path)) as container:
        pieces = [f.to_ndarray().reshape(-1) for f in container.decode(audio=0)]
    loud = np.abs(np.concatenate(pieces).astype(float)) > 0.2
    begins = np.flatnonzero(loud & ~np.concatenate([[False], loud[:-1]]))
    return [float(b) / RATE_HZ for b in begins[np.concatenate([[True], np.diff(begins) > 4800])]] if len(begins) else []


@pytest.mark.parametrize("latency_ms", [0, 700])
def test_sound_is_delayed_with_its_picture(tmp_path: Path, latency_ms: int) -> None:
    """A simultaneous flash and click: the picture arrives `latency_ms` later, the click immediately."""
    path = tmp_path / "out.mp4"
    recording = Recording(RecordingOptions(path=path, sound=SoundFormat(rate_hz=RATE_HZ)))
    sound = click(600, 2000)
    for start_ms in range(0, 2000, 20):
        samples = sound[:, start_ms * 48 : (start_ms + 20) * 48]
        recording.add_sound(samples, (10_000 + start_ms) * MS)
    for index in range(50):
        value = 39 if index == 15 else 0  # 600 ms
        offered(recording, frame(value, 10_000 + 40 * index), 10_000 + 40 * index + latency_ms)
    recording.stop()
    played = play(path)
    flash_s = played.times_s[int(np.argmax(played.greys))]
    assert flash_s == pytest.approx(0.6, abs=0.001)
    assert loud_s(path) == pytest.approx([flash_s], abs=0.03)  # AAC rings a little before
    assert played.sound_s == pytest.approx(2.0, abs=0.05)


def test_late_sound_gets_silence_before_it_and_frames_of_other_formats_fit(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    recording = Recording(RecordingOptions(path=path, sound=SoundFormat(rate_hz=RATE_HZ)))
    wave = np.full((1, 44_100 * 2), 20_000, np.int16)  # packed stereo, 1 s
    other = av.AudioFrame.from_ndarray(wave, format="s16", layout="stereo")
    other.sample_rate = 44_100
    recording.add_sound(other, 2_500 * MS)
    for index in range(100):
        offered(recording, frame(index, 1000 + 40 * index), 1000 + 40 * index)
    recording.stop()
    assert loud_s(path) == pytest.approx([1.5], abs=0.03)
    assert play(path).sound_s == pytest.approx(2.5, abs=0.06)


def test_a_track_closes_gaps_cuts_overlaps_and_ignores_jitter() -> None:
    track = SoundTrack(SoundFormat(rate_hz=8000))
    ones = np.ones((1, 800), np.int16)  # 100 ms
    for start_ms in (-50, 55, 160, 500, 420):  # starts before 0; jitter; jitter; a hole of 240 ms; 180 ms overlap
        track.add(ones, start_ms * MS)
    samples = np.concatenate([f.to_ndarray()[0] for f in track.until(10_000 * MS, 0)])
    expected = [1] * 400 + [1] * 800 + [1] * 800 + [0] * 2000 + [1] * 800
    assert samples.tolist() == expected
    assert list(track.until(10_000 * MS, 0)) == []


def test_sound_that_nobody_takes_is_bounded() -> None:
    track = SoundTrack(SoundFormat(rate_hz=8000))
    for second in range(40):
        track.add(np.zeros((1, 8000), np.int16), second * 1000 * MS)
    assert track.dropped_chunks == 10
    with pytest.raises(InputError, match="does not fit the recording"):
        track.add(np.zeros((2, 80), np.int16), 0)
    with pytest.raises(InputError, match="6 channels cannot be recorded"):
        SoundFormat(channels=6)


def test_the_newest_sound_is_kept_when_no_picture_takes_it(tmp_path: Path) -> None:
    """A model that needs 40 s for its first picture: the click of that moment is in the file."""
    path = tmp_path / "out.mp4"
    recording = Recording(RecordingOptions(path=path, sound=SoundFormat(rate_hz=RATE_HZ)))
    for second in range(42):
        recording.add_sound(click(500) * (second == 40), second * 1000 * MS)
    for index in range(26):
        offered(recording, frame(index, 40_000 + 40 * index), 0)
    recording.stop()
    assert loud_s(path) == pytest.approx([0.5], abs=0.03)


def test_a_recording_listens_from_its_start_to_its_end(tmp_path: Path) -> None:
    listeners: list[Callable[[av.AudioFrame, int], None]] = []

    def listen(listener: Callable[[av.AudioFrame, int], None]) -> Callable[[], None]:
        listeners.append(listener)
        return lambda: listeners.remove(listener)

    path = tmp_path / "out.mp4"
    recording = Recording(RecordingOptions(path=path, sound=SoundFormat(channels=2), listen=listen))
    assert len(listeners) == 1
    sound = av.AudioFrame.from_ndarray(np.full((1, 48_000), 20_000, np.int16), format="s16", layout="mono")
    sound.sample_rate = RATE_HZ
    listeners[0](sound, 1_000 * MS)
    for index in range(26):
        offered(recording, frame(index, 1_000 + 40 * index), 0)
    soon(lambda: recording.read().done > 20)
    assert recording.read().text == "recording out.mp4"
    recording.stop()
    assert listeners == []
    assert recording.read().text == "recorded 1.0 s to out.mp4"
    assert (play(path).sound_codec, play(path).sound_s) == ("aac", pytest.approx(1.0, abs=0.05))


def test_a_recording_to_which_no_sound_came_says_so_and_has_no_track(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    recording = Recording(RecordingOptions(path=path, sound=SoundFormat()))
    for index in range(26):
        offered(recording, frame(index, 1_000 + 40 * index), 0)
    soon(lambda: recording.read().done > 20)
    assert recording.read().text == "recording out.mp4; no sound has arrived yet"
    recording.stop()
    assert recording.read().text == "recorded 1.0 s to out.mp4; no sound arrived"
    assert (play(path).sound_codec, len(play(path).greys)) == ("", 26)


# ---- faults ----

VICTIM = """
import sys, time
from fractions import Fraction
from pathlib import Path
import numpy as np
from app.outputs.record import Recording, RecordingOptions
from app.outputs.recording_sound import SoundFormat
from pipelines.core.types import Frame
from tests.fakes.clips import picture

recording = Recording(RecordingOptions(path=Path(sys.argv[1]), sound=SoundFormat(rate_hz=8000)))
for index in range(100_000):
    while len(recording._queue._frames) >= 20:  # none is rejected, even on a busy machine
        time.sleep(0.001)
    recording.add_sound(np.full((1, 320), 9000, np.int16), index * 40_000_000)
    image, at_ns = picture(index, (32, 24)), index * 40_000_000
    recording.offer(Frame(image=image, pts=index, time_base=Fraction(1, 25), seq=index, captured_ns=at_ns), at_ns)
    time.sleep(0.002)
    if index == 250:
        print("go", flush=True)
"""


def test_a_killed_process_leaves_a_file_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    victim = subprocess.Popen(
        [sys.executable, "-c", VICTIM, str(path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": "."}
    )
    assert victim.stdout is not None
    assert victim.stdout.readline() == b"go\n"
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    played = play(path)
    count = len(played.greys)
    assert count >= (250 - 24) // 25 * 25 - 2 * 25  # whole pieces of a second without what waited, and two under way
    assert played.greys == pytest.approx([grey(index) for index in range(count)], abs=3)
    assert played.times_s == pytest.approx([index * 0.04 for index in range(count)], abs=2e-5)
    assert played.sound_s == pytest.approx(count * 0.04, abs=1.2)


def test_a_full_disk_ends_the_recording_with_a_message_and_a_file_that_plays(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limits[1]))
    random = np.random.default_rng(0)
    try:
        recording = recorded(path)
        index = 0
        while recording.read().phase is not OutputPhase.FAILED:
            assert index < 5000
            noise = random.integers(0, 255, (24, 32, 3), dtype=np.uint8)
            captured_ns = 40 * index * MS
            noisy = Frame(image=noise, pts=index, time_base=Fraction(1, 25), seq=index, captured_ns=captured_ns)
            recording.offer(noisy, captured_ns)
            index += 1
            time.sleep(0.0005)
        recording.offer(frame(0, 0), 0)  # goes nowhere
        recording.stop()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert recording.read().text.startswith("The recording out.mp4 ended: File too large. What was recorded")
    assert len(play(path).greys) >= 25


def test_the_message_of_a_full_disk() -> None:
    with (
        pytest.raises(OutputError, match=r"The disk is full: the recording a\.mp4 ended"),
        recording_file.output_errors(Path("/x/a.mp4")),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_no_room_for_the_ordinary_file_leaves_the_fragmented_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(growing: Path, final: Path, *, sound: bool) -> int:
        final.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(recording_file, "_remux", full)
    recording = recorded(tmp_path / "out.mp4")
    for index in range(3):
        offered(recording, frame(index, 40 * index), 0)
    recording.stop()
    reading = recording.read()
    assert reading.phase is OutputPhase.STOPPED
    assert "out.mp4 stays in fragments: [Errno 28] No space left" in reading.text
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]
    assert len(play(tmp_path / "out.mp4").greys) == 3


def test_nothing_is_overwritten_and_nothing_is_left_when_no_frame_came(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    recording = recorded(path)
    recording.stop()
    recording.stop()
    assert (recording.read().phase, recording.read().text) == (
        OutputPhase.STOPPED,
        "nothing was recorded: no frame arrived",
    )
    assert not path.exists()
    path.write_bytes(b"precious")
    with pytest.raises(InputError, match=r"out\.mp4 already exists"):
        recorded(path)
    with pytest.raises(InputError, match="End it in"):
        RecordingOptions(path=tmp_path / "out.avi")


def test_a_folder_that_does_not_exist_is_a_message(tmp_path: Path) -> None:
    recording = recorded(tmp_path / "nowhere" / "out.mp4")
    recording.offer(frame(0, 0), 0)
    soon(lambda: recording.read().phase is OutputPhase.FAILED)
    assert "No such file or directory" in recording.read().text
    recording.stop()


def test_a_recording_that_may_not_grow_ends_with_a_message_and_a_file_that_plays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "_QUOTA_CHECK_S", 0.0)
    path, ended = tmp_path / "out.mp4", []
    recording = Recording(
        RecordingOptions(path=path, may_grow=lambda: recording.read().done < 5, on_end=lambda: ended.append(True))
    )
    index = 0
    while not recording.read().over:
        recording.offer(frame(index, 1000 + 40 * index), (1000 + 40 * index) * MS)
        index += 1
        time.sleep(0.01)
    reading = recording.read()
    assert (reading.phase, ended) == (OutputPhase.FAILED, [True])
    assert reading.text.endswith("then the quota for recordings was used up")
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == reading.done >= 5
