"""The sound of a recording: chunks with capture times become one track without gaps.

Times are monotonic, in ns. Pictures and sound are both recorded at the capture time of their source, which delays sound
by exactly the latency of the model. Independent of files and pictures.
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

_SLACK_S = 0.1  # smaller gaps and overlaps are ignored: clocks and networks jitter
_MAX_WAIT_S = 30.0
_LAYOUTS = {1: "mono", 2: "stereo"}

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True, kw_only=True)
class SoundFormat:
    """rate_hz: samples per second, 8000 to 96000. channels: 1 or 2. Raises InputError."""

    rate_hz: int = 48_000
    channels: int = 1

    def __post_init__(self) -> None:
        if self.channels not in _LAYOUTS:
            raise InputError(f"Sound with {self.channels} channels cannot be recorded.", "Give 1 or 2.")
        if not 8_000 <= self.rate_hz <= 96_000:
            raise InputError(f"Sound at {self.rate_hz} Hz cannot be recorded.", "Give 8000 to 96000.")

    @property
    def layout(self) -> str:
        return _LAYOUTS[self.channels]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    captured_ns: int
    samples: Samples  # [channels, N]


class SoundTrack:
    """`add` may be called from any thread, `until` only from the writer's. At most 30 s are queued; then the oldest
    chunks are dropped."""

    def __init__(self, format_: SoundFormat) -> None:
        self.format = format_
        self._lock = threading.Lock()
        self._chunks: deque[_Chunk] = deque()
        self._waiting_s = 0.0
        self._resampler = av.AudioResampler(format="s16p", layout=format_.layout, rate=format_.rate_hz)
        self._position = 0  # in samples: the end of the track so far
        self.dropped_chunks = 0

    def add(self, sound: Samples | av.AudioFrame, captured_ns: int | None = None) -> None:
        """Queue sound: [channels, N] int16 in the track's format, or a frame of any format.

        captured_ns: monotonic capture time of the first sample; None: the last sample was captured now. Raises
        InputError.
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
        """Yield the track from where it stopped up to `end_ns`, as far as sound has arrived. origin_ns: its time 0."""
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
        """Return the next chunk that begins before `end_ns`, if any."""
        with self._lock:
            if not self._chunks or self._chunks[0].captured_ns >= end_ns:
                return None
            chunk = self._chunks.popleft()
            self._waiting_s -= chunk.samples.shape[1] / self.format.rate_hz
            return chunk

    def _converted(self, sound: Samples | av.AudioFrame) -> Iterator[Samples]:
        if isinstance(sound, av.AudioFrame):
            sound.pts = None  # capture times are used instead
            for frame in self._resampler.resample(sound):
                yield frame.to_ndarray()
            return
        if sound.dtype != np.int16 or sound.ndim != 2 or sound.shape[0] != self.format.channels:
            raise InputError(
                f"Sound of shape {sound.shape} and dtype {sound.dtype} does not fit the recording.",
                f"Give [{self.format.channels}, N] int16 at {self.format.rate_hz} Hz.",
            )
        yield sound

    def _silence(self, samples: int) -> Iterator[av.AudioFrame]:
        """Yield silence in frames of at most a second."""
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
