"""Records a session's frames, optionally with sound, to an MP4 file without delaying live frames.

Owns one thread, which encodes and writes. Frames wait in a bounded queue; when the disk or the encoder is too slow, the
newest are rejected and counted. A picture's time in the file is the capture time of its source, or its arrival time if
it has none. Independent of where frames and sound come from.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av

from app.session.sound import SoundListener
from pipelines.core.errors import InputError, OutputError
from pipelines.core.types import Frame

from .frame_queue import Arrived, FrameQueue
from .output import OutputPhase, OutputReading
from .recording_file import TICKS_PER_SECOND, RecordingFile
from .recording_sound import Samples, SoundFormat, SoundTrack

_POLL_S = 0.25  # how often sound is written while no picture arrives
_STALLED_NS = 5_000_000_000  # sound continues without pictures when none has arrived for this long
_FIRST_GAP_TICKS = TICKS_PER_SECOND // 30
_MIN_GAP_TICKS = TICKS_PER_SECOND // 1000
_JOIN_S = 60.0
_QUOTA_CHECK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOptions:
    """path: an MP4 file that does not exist yet, in an existing folder.

    sound: None for none. listen: subscribes to a source's sound (SoundHub.listen) and returns a function that
    unsubscribes; without it sound is added with `Recording.add_sound`. max_queued_frames: frames that wait for the
    encoder, 1 or more. may_grow: called every second; False ends the recording. on_end: called once, after the last
    write. Both are called on the recording's thread. Raises InputError.
    """

    path: Path
    sound: SoundFormat | None = None
    listen: Callable[[SoundListener], Callable[[], None]] | None = None
    max_queued_frames: int = 24
    may_grow: Callable[[], bool] = lambda: True
    on_end: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{self.path.name} is not the name of an MP4 file.", "End it in .mp4.")
        if self.max_queued_frames < 1:
            raise InputError(f"max_queued_frames is {self.max_queued_frames}.", "Give 1 or more.")


class Recording:
    """A running recording. The file is created with the first frame. Raises InputError if it already exists."""

    def __init__(self, options: RecordingOptions) -> None:
        self._options = options
        if options.path.exists():
            raise InputError(f"{options.path.name} already exists.", "Give another name.")
        self._queue = FrameQueue(options.max_queued_frames)
        self._track = SoundTrack(options.sound) if options.sound is not None else None
        self._file: RecordingFile | None = None
        self._origin_ns = 0  # the moment at time 0 of the file
        self._held: tuple[Frame, int] | None = None  # the last frame and its pts; its duration is not known yet
        self._gap_ticks = _FIRST_GAP_TICKS
        self._quota_checked_s = time.monotonic()
        self._full = False
        self._phase, self._text = OutputPhase.STARTING, "waiting for the first frame"
        self._unsubscribe = options.listen(self.add_sound) if options.listen is not None else lambda: None
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        return self._options.path

    @property
    def seconds(self) -> float:
        """Seconds recorded so far."""
        held = self._held
        return held[1] / TICKS_PER_SECOND if held is not None else 0.0

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        self._queue.offer(frame, arrived_ns)

    def add_sound(self, sound: Samples | av.AudioFrame, captured_ns: int | None = None) -> None:
        """See SoundTrack.add. The recording must have been created with sound."""
        assert self._track is not None, "recording without sound"
        self._track.add(sound, captured_ns)

    def read(self) -> OutputReading:
        file, phase, text = self._file, self._phase, self._text
        if phase is OutputPhase.RUNNING and self._silent:
            text = f"{text}; no sound has arrived yet"
        return OutputReading(
            kind="recording",
            phase=phase,
            done=file.frames if file is not None else 0,
            dropped=self._queue.rejected,
            text=text,
            file=self._options.path.name,
        )

    def stop(self) -> None:
        """Write the queued frames and finish the file; waits for that, at most a minute."""
        self._queue.close()
        self._thread.join(_JOIN_S)

    @property
    def _silent(self) -> bool:
        """Whether sound was requested but the file has none."""
        return self._track is not None and self._file is not None and not self._file.has_sound

    # ---- the writing thread ----

    def _run(self) -> None:
        try:
            while not self._queue.done:
                self._step()
            self._finish()
        except OutputError as error:
            self._queue.close()
            if self._file is not None:
                self._file.abandon()
            self._phase, self._text = OutputPhase.FAILED, str(error)
        finally:
            if not self.read().over:  # an unexpected error, which the thread's hook reports
                self._queue.close()
                self._phase, self._text = OutputPhase.FAILED, "an unexpected error ended it; see the terminal"
            self._unsubscribe()
            self._options.on_end()

    def _step(self) -> None:
        arrived = self._queue.take(_POLL_S)
        if arrived is not None:
            self._add(arrived)
        elif self._held is not None:
            self._write_sound(time.monotonic_ns() - _STALLED_NS)
        now_s = time.monotonic()
        if now_s - self._quota_checked_s >= _QUOTA_CHECK_S and not self._full:
            self._quota_checked_s = now_s
            self._full = not self._options.may_grow()
            if self._full:
                self._queue.close()  # queued frames are still written

    def _add(self, arrived: Arrived) -> None:
        frame = arrived.frame
        moment_ns = arrived.arrived_ns if frame.captured_ns is None else frame.captured_ns
        if self._file is None:
            height, width = frame.image.shape[:2]
            size = (width // 2 * 2, height // 2 * 2)
            self._file = RecordingFile(self._options.path, size, self._options.sound)
            self._origin_ns = moment_ns
            self._phase, self._text = OutputPhase.RUNNING, f"recording {self._options.path.name}"
        pts = round((moment_ns - self._origin_ns) * TICKS_PER_SECOND / 1e9)
        if self._held is not None:
            pts = max(pts, self._held[1] + _MIN_GAP_TICKS)  # a change from prompt to camera may go back in time
            self._gap_ticks = pts - self._held[1]
            self._write_held()
        self._held = (frame, pts)
        self._write_sound(moment_ns)

    def _write_held(self) -> None:
        assert self._file is not None
        assert self._held is not None
        frame, pts = self._held
        self._file.write_picture(frame.image, pts, self._gap_ticks)

    def _write_sound(self, end_ns: int) -> None:
        if self._track is not None and self._file is not None:
            for frame in self._track.until(end_ns, self._origin_ns):
                self._file.write_sound(frame)

    def _finish(self) -> None:
        if self._file is None or self._held is None:
            self._phase, self._text = OutputPhase.STOPPED, "nothing was recorded: no frame arrived"
            return
        end_ticks = self._held[1] + self._gap_ticks
        self._write_held()
        self._write_sound(self._origin_ns + end_ticks * 1_000_000_000 // TICKS_PER_SECOND)
        self._file.close()
        text = f"recorded {end_ticks / TICKS_PER_SECOND:.1f} s to {self._options.path.name}"
        if self._silent:
            text = f"{text}; no sound arrived"
        if self._full:  # no space for a copy either; the fragmented file is playable
            self._phase, self._text = OutputPhase.FAILED, f"{text}, then the quota for recordings was used up"
            return
        try:
            self._file.defragment()
        except OutputError as error:
            text = f"{text}; {error}"
        self._phase, self._text = OutputPhase.STOPPED, text
