"""Says how long a render takes and what it needs, from its first frames; refuses one that cannot end.

Owns the checks of memory before, and of time, memory and disk while it runs. Independent of engines and formats.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from app.media.containers import Container, FileKind
from pipelines.core.contracts import Notify
from pipelines.core.errors import OutOfMemoryError, OutputError
from pipelines.core.host_memory import free_host_bytes, gib, used_host_bytes

_MEASURED_S = 1.0  # between the first frames and the last measured ones
_DISK_PERIOD_S = 30.0
_CERTAIN_SHARE = 0.5  # later frames may be smaller: what is refused would have to be twice as much as fits
_PICTURE_BYTES_PER_PX = 12  # of writers without an encoder: the picture, its copy and its compressed form
_MAX_SIDE = 16384


class CannotEndError(OutputError):
    """The render would not end. What was written is complete and can be resumed."""


def check_output_size(kind: FileKind | None, size: tuple[int, int], free_bytes: int | None = None) -> None:
    """Raise OutputError or OutOfMemoryError if frames of this size (pixels) cannot be encoded. free_bytes: for
    tests."""
    width, height = size
    if isinstance(kind, Container) and max(size) > _MAX_SIDE:
        fitting = _scaled(size, _MAX_SIDE / max(size))
        raise OutputError(
            f"Video cannot be {width}x{height}: at most {_MAX_SIDE} a side.", f"Give --out-size {fitting}."
        )
    free = free_host_bytes() if free_bytes is None else free_bytes
    per_px = kind.memory_per_px if isinstance(kind, Container) else _PICTURE_BYTES_PER_PX
    needed = width * height * per_px
    if needed > free:
        raise OutOfMemoryError(
            f"Writing frames of {width}x{height} needs about {gib(needed)} of memory, and {gib(free)} are free.",
            f"--out-size {_scaled(size, math.sqrt(free / needed))} would fit.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Meters:
    """Where figures come from: seconds, bytes used by this process, bytes free on the host, and on a path's disk."""

    clock: Callable[[], float] = time.monotonic
    used: Callable[[], int] = used_host_bytes
    free: Callable[[], int] = free_host_bytes
    free_disk: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free


class Forecast:
    """Of one render. total: frames to make, None if unknown; done: of them, those that are made already."""

    def __init__(
        self, output: Path, *, total: int | None, done: int, copies: int, say: Notify, meters: Meters | None = None
    ) -> None:
        """copies: how often the output is on the disk at the end, before unfinished files are removed."""
        self._output, self._total, self._done, self._copies = output, total, done, copies
        self._say = say
        self._meters = meters or Meters()
        self._first: tuple[float, int] | None = None  # when the first frames were made, and how many there were then
        self._written: tuple[int, int] | None = None  # frames and bytes in the output at the first delivery
        self._disk_at: float | None = None
        self._said = self._warned = False

    def delivered(self, frames: int, written: int) -> None:
        """So many frames were made just now; `written` are in the output. Raises CannotEndError."""
        now = self._meters.clock()
        self._done += frames
        if self._first is None or self._written is None:
            self._first, self._written = (now, self._done), (written, self._bytes())
            return
        elapsed = now - self._first[0]
        if elapsed < _MEASURED_S:
            return
        if self._disk_at is None or now - self._disk_at >= _DISK_PERIOD_S:
            self._disk_at = now
            disk = self._check_disk(written)
            if not self._said and self._left != 0:
                self._said = True
                self._say(self._sentence(elapsed / (self._done - self._first[1]), disk))

    @property
    def memory(self) -> str:
        """What the process uses now, for a line of progress."""
        return gib(self._meters.used())

    @property
    def _left(self) -> int | None:
        return None if self._total is None else max(0, self._total - self._done)

    def _sentence(self, seconds_per_frame: float, disk: str) -> str:
        pace = f"{_span(seconds_per_frame)} a frame"
        how_long = (
            f"Takes {pace}"
            if self._left is None
            else (f"Takes about {_span(seconds_per_frame * self._left)} more for {self._left} frames ({pace})")
        )
        memory = f"uses {gib(self._meters.used())} of memory ({gib(self._meters.free())} are free)"
        return f"{how_long}; {memory}{disk}."

    def _check_disk(self, written: int) -> str:
        """What the other frames need, as the end of a sentence. Raises CannotEndError."""
        assert self._written is not None
        frames, grown = written - self._written[0], self._bytes() - self._written[1]
        if self._left is None or frames <= 0 or grown <= 0:
            return ""
        per_frame = grown / frames
        needed = per_frame * (self._left + (self._copies - 1) * self._total_frames)
        free = self._meters.free_disk(self._output.parent)
        if needed * _CERTAIN_SHARE > free:
            fit = int(free / (per_frame * self._copies))
            raise CannotEndError(
                f"The disk has {_mb(free)} free, and the other {self._left} frames need about {_mb(needed)}: about "
                f"{fit} of them would fit.",
                f"Free {_mb(needed - free)} and continue with --resume, or start over with a smaller --out-size.",
            )
        if needed > free and not self._warned:
            self._warned = True
            self._say(
                f"The disk may become full: {_mb(free)} are free, and the other {self._left} frames need about "
                f"{_mb(needed)}."
            )
        return f" and about {_mb(needed)} of disk ({_mb(free)} are free)"

    @property
    def _total_frames(self) -> int:
        return self._total or 0

    def _bytes(self) -> int:
        """Of the output so far."""
        if self._output.is_dir():
            return sum(file.stat().st_size for file in self._output.iterdir() if file.is_file())
        return self._output.stat().st_size if self._output.exists() else 0


def _scaled(size: tuple[int, int], by: float) -> str:
    width, height = (max(2, int(side * by) // 2 * 2) for side in size)
    return f"{width}x{height}"


def _span(seconds: float) -> str:
    """'0.04 s', '12 s', '32 min', '5.2 h'."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _mb(count: float) -> str:
    if count >= 1e11:
        return f"{count / 1e9:.0f} GB"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, count / 1e6):.0f} MB"
