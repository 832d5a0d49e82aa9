"""Sound that is recorded beside pictures: chunks with their capture times become one track without holes.

Times are monotonic ns. Pictures and sound are placed in a recording at the time when their source was captured: that
delays sound by exactly what the model took. Does not depend on files and pictures.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt

from pipelines.core.errors import InputError

_SLACK_S = 0.1  # chunks this close to where the last one ended follow it at once: clocks and networks jitter
_MAX_WAIT_S = 30.0
_LAYOUTS = {1: "mono", 2: "stereo"}

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundFormat:
    """rate_hz: samples a second. channels: 1 or 2."""

    rate_hz: int = 48_000
    channels: int = 1

    def __post_init__(self) -> None:
        if self.channels not in _LAYOUTS:
            raise InputError(f"Sound of {self.channels} channels is not recorded.", "Give 1 or 2.")
        if not 8_000 <= self.rate_hz <= 96_000:
            raise InputError(f"Sound of {self.rate_hz} Hz is not recorded.", "Give 8000 to 96000.")

    @property
    def layout(self) -> str:
        return _LAYOUTS[self.channels]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    captured_ns: int
    samples: Samples  # [channels, N]


class SoundTrack:
    """`add` from any thread; `until` and what follows on the writer's. At most 30 s wait; the oldest are dropped."""

    def __init__(self, format_: SoundFormat) -> None:
        self.format = format_
        self._lock = threading.Lock()
        self._chunks: deque[_Chunk] = deque()
        self._waiting_s = 0.0
        self._resampler = av.AudioResampler(format="s16p", layout=format_.layout, rate=format_.rate_hz)
        self._position = 0  # samples written
        self.dropped_chunks = 0

    def add(self, sound: Samples | av.AudioFrame, captured_ns: int | None = None) -> None:
        """sound: [channels, N] int16 in the track's format, or a frame of any format.

        captured_ns: monotonic time of the first sample; None: the last one is of now. Raises InputError.
        """
        with self._lock:
            for samples in self._converted(sound):
                seconds = samples.shape[1] / self.format.rate_hz
                while self._chunks and self._waiting_s + seconds > _MAX_WAIT_S:
                    self._drop_oldest()
                if captured_ns is None:
                    captured_ns = time.monotonic_ns() - round(seconds * 1e9)
                self._chunks.append(_Chunk(captured_ns=captured_ns, samples=samples))
                self._waiting_s += seconds
                captured_ns += round(seconds * 1e9)

    def until(self, end_ns: int, origin_ns: int) -> Iterator[av.AudioFrame]:
        """The track, from where it was left, up to `end_ns` as far as sound is there; origin_ns: its time 0."""
        while (chunk := self._take(end_ns)) is not None:
            start = round((chunk.captured_ns - origin_ns) * self.format.rate_hz / 1e9)
            samples = chunk.samples
            gap = start - self._position
            if gap > _SLACK_S * self.format.rate_hz:
                yield from self._silence(gap)
            elif gap < -_SLACK_S * self.format.rate_hz or start < 0:
                samples = samples[:, max(0, -gap) :]
            if samples.shape[1]:
                yield self._frame(samples)

    def _drop_oldest(self) -> None:
        self._waiting_s -= self._chunks.popleft().samples.shape[1] / self.format.rate_hz
        self.dropped_chunks += 1

    def _take(self, end_ns: int) -> _Chunk | None:
        """The next chunk that begins before `end_ns`."""
        with self._lock:
            if not self._chunks or self._chunks[0].captured_ns >= end_ns:
                return None
            chunk = self._chunks.popleft()
            self._waiting_s -= chunk.samples.shape[1] / self.format.rate_hz
            return chunk

    def _converted(self, sound: Samples | av.AudioFrame) -> Iterator[Samples]:
        if isinstance(sound, av.AudioFrame):
            sound.pts = None  # the times here are those of capture
            for frame in self._resampler.resample(sound):
                yield frame.to_ndarray()
            return
        if sound.dtype != np.int16 or sound.ndim != 2 or sound.shape[0] != self.format.channels:
            raise InputError(
                f"Sound of shape {sound.shape} and type {sound.dtype} does not fit the recording.",
                f"Give [{self.format.channels}, N] int16 at {self.format.rate_hz} Hz.",
            )
        yield sound

    def _silence(self, samples: int) -> Iterator[av.AudioFrame]:
        """In pieces of at most a second."""
        while samples > 0:
            count = min(samples, self.format.rate_hz)
            yield self._frame(np.zeros((self.format.channels, count), np.int16))
            samples -= count

    def _frame(self, samples: Samples) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="s16p", layout=self.format.layout)
        frame.sample_rate, frame.pts = self.format.rate_hz, self._position
        frame.time_base = Fraction(1, self.format.rate_hz)
        self._position += samples.shape[1]
        return frame
