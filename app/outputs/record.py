"""Records a session's frames, with sound if it is given, to an MP4 file, away from the path of live frames.

Owns one thread, which encodes and writes. Frames wait in a bounded room; when the disk or the encoder is too slow the
newest are turned away and counted. A picture's time in the file is that at which its source was captured, or at which
it arrived when there was none. Does not depend on where frames and sound come from.
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

from .output import OutputPhase, OutputReading
from .recording_file import TICKS_A_SECOND, RecordingFile
from .recording_sound import Samples, SoundFormat, SoundTrack
from .waiting_room import Arrived, WaitingRoom

_LOOK_S = 0.25  # how often sound is looked after while no picture comes
_STALLED_NS = 5_000_000_000  # sound goes on without pictures when none has come for so long
_FIRST_GAP_TICKS = TICKS_A_SECOND // 30
_MIN_GAP_TICKS = TICKS_A_SECOND // 1000
_JOIN_S = 60.0
_QUOTA_LOOK_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOptions:
    """path: an MP4 file that does not exist yet, in an existing folder.

    sound: None for none. listen: subscribes the recording to a source's sound (SoundHub.listen), until the result is
    called; without it sound comes by `Recording.add_sound`.
    waiting_frames: room for frames that the encoder has not taken yet. may_grow: asked every second; False ends the
    recording. on_end: called once, when nothing more is written. Both on the recording's own thread.
    """

    path: Path
    sound: SoundFormat | None = None
    listen: Callable[[SoundListener], Callable[[], None]] | None = None
    waiting_frames: int = 24
    may_grow: Callable[[], bool] = lambda: True
    on_end: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.path.suffix.lower() != ".mp4":
            raise InputError(f"{self.path.name} is not the name of an MP4 file.", "End it in .mp4.")
        if self.waiting_frames < 1:
            raise InputError(f"waiting_frames is {self.waiting_frames}.", "Give 1 or more.")


class Recording:
    """A running recording. The file appears with the first frame. Raises InputError when it exists already."""

    def __init__(self, options: RecordingOptions) -> None:
        self._options = options
        if options.path.exists():
            raise InputError(f"{options.path.name} exists already.", "Give another name.")
        self._room = WaitingRoom(options.waiting_frames)
        self._track = SoundTrack(options.sound) if options.sound is not None else None
        self._file: RecordingFile | None = None
        self._origin_ns = 0  # the time in the file that is 0
        self._held: tuple[Frame, int] | None = None  # the last frame and its pts: its duration is not known yet
        self._gap_ticks = _FIRST_GAP_TICKS
        self._asked_s = time.monotonic()
        self._full = False
        self._phase, self._text = OutputPhase.STARTING, "waiting for the first frame"
        self._forget = options.listen(self.add_sound) if options.listen is not None else lambda: None
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    @property
    def path(self) -> Path:
        return self._options.path

    @property
    def seconds(self) -> float:
        """Recorded so far."""
        held = self._held
        return held[1] / TICKS_A_SECOND if held is not None else 0.0

    def offer(self, frame: Frame, arrived_ns: int) -> None:
        self._room.offer(frame, arrived_ns)

    def add_sound(self, sound: Samples | av.AudioFrame, captured_ns: int | None = None) -> None:
        """As SoundTrack.add; the recording must have been made with sound."""
        assert self._track is not None, "recording without sound"
        self._track.add(sound, captured_ns)

    def read(self) -> OutputReading:
        file, phase, text = self._file, self._phase, self._text
        if phase is OutputPhase.RUNNING and self._silent:
            text = f"{text}; no sound has come yet"
        return OutputReading(
            kind="recording",
            phase=phase,
            done=file.frames if file is not None else 0,
            dropped=self._room.turned_away,
            text=text,
            file=self._options.path.name,
        )

    def stop(self) -> None:
        """Write what waits, finish the file and wait for that."""
        self._room.close()
        self._thread.join(_JOIN_S)

    @property
    def _silent(self) -> bool:
        """Sound was wanted, and there is none in the file."""
        return self._track is not None and self._file is not None and not self._file.has_sound

    # ---- the writing thread ----

    def _run(self) -> None:
        try:
            while not self._room.done:
                self._step()
            self._finish()
        except OutputError as error:
            self._room.close()
            if self._file is not None:
                self._file.abandon()
            self._phase, self._text = OutputPhase.FAILED, str(error)
        finally:
            if not self.read().over:  # a fault of ours; the thread's hook reports it
                self._room.close()
                self._phase, self._text = OutputPhase.FAILED, "the recording ended by a fault; the terminal has it"
            self._forget()
            self._options.on_end()

    def _step(self) -> None:
        arrived = self._room.take(_LOOK_S)
        if arrived is not None:
            self._add(arrived)
        elif self._held is not None:
            self._write_sound(time.monotonic_ns() - _STALLED_NS)
        now_s = time.monotonic()
        if now_s - self._asked_s >= _QUOTA_LOOK_S and not self._full:
            self._asked_s = now_s
            self._full = not self._options.may_grow()
            if self._full:
                self._room.close()  # what waits is still written

    def _add(self, arrived: Arrived) -> None:
        frame = arrived.frame
        moment_ns = arrived.arrived_ns if frame.captured_ns is None else frame.captured_ns
        if self._file is None:
            height, width = frame.image.shape[:2]
            size = (width // 2 * 2, height // 2 * 2)
            self._file = RecordingFile(self._options.path, size, self._options.sound)
            self._origin_ns = moment_ns
            self._phase, self._text = OutputPhase.RUNNING, f"recording {self._options.path.name}"
        pts = round((moment_ns - self._origin_ns) * TICKS_A_SECOND / 1e9)
        if self._held is not None:
            pts = max(pts, self._held[1] + _MIN_GAP_TICKS)  # a camera was put in the place of a prompt
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
            self._phase, self._text = OutputPhase.STOPPED, "nothing was recorded: no frame came"
            return
        end_ticks = self._held[1] + self._gap_ticks
        self._write_held()
        self._write_sound(self._origin_ns + end_ticks * 1_000_000_000 // TICKS_A_SECOND)
        self._file.close()
        text = f"recorded {end_ticks / TICKS_A_SECOND:.1f} s to {self._options.path.name}"
        if self._silent:
            text = f"{text}; no sound came"
        if self._full:  # no room for a copy either: the fragmented file plays
            self._phase, self._text = OutputPhase.FAILED, f"{text}, then the space allowed for recordings was full"
            return
        try:
            self._file.make_ordinary()
        except OutputError as error:
            text = f"{text}; {error}"
        self._phase, self._text = OutputPhase.STOPPED, text
