"""Plays a video file into a session as a camera would: at its own rate, looping, newest frame wins.

Owns one thread. Knows the session's `submit` only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from pipelines.errors import InputError

from .picture import Picture

_FALLBACK_RATE = 24.0  # for files that state none


class Playback:
    """Starts playing at once; `submit` gets [H, W, 3] uint8 RGB pictures on the playback's thread.

    Raises InputError when the file has no picture that can be read.
    """

    def __init__(self, path: Path, submit: Callable[[Picture], object]) -> None:
        check_video(path)
        self.error: InputError | None = None
        self._path = path
        self._submit = submit
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._play, name="playback", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait for the thread; stopping twice is fine."""
        self._stopped.set()
        self._thread.join()

    def _play(self) -> None:
        while not self._stopped.is_set():
            started_s = time.monotonic()
            shown = 0
            try:
                for at_s, picture in read_pictures(self._path):
                    if self._stopped.wait(max(0.0, started_s + at_s - time.monotonic())):
                        return
                    self._submit(picture)
                    shown += 1
            except InputError as error:
                if not shown:
                    self.error = error
                    return
                # truncated or damaged further on: what could be read is played in a loop


def check_video(path: Path) -> None:
    """Raise InputError, with the file's name, unless a first picture can be read from `path`."""
    if next(read_pictures(path), None) is None:
        raise InputError(f"{path.name} holds no picture.", "Give a video file such as MP4 or WebM.")


def read_pictures(path: Path) -> Iterator[tuple[float, Picture]]:
    """Pictures of the first video track with their times in seconds from 0, never running backwards."""
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path.name} has no video track.", "Give a video file such as MP4 or WebM.")
            track = container.streams.video[0]
            period_s = 1.0 / float(track.average_rate or _FALLBACK_RATE)
            first_s: float | None = None
            due_s = 0.0
            for number, frame in enumerate(container.decode(track)):
                time_s = number * period_s if frame.time is None else float(frame.time)
                first_s = time_s if first_s is None else first_s
                due_s = max(due_s, time_s - first_s)
                yield due_s, np.ascontiguousarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
    except (av.error.FFmpegError, OSError) as error:
        raise InputError(f"{path.name} cannot be read as video ({error}).", "Give a video file such as MP4.") from error
