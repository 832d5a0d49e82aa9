"""Turns decoded sound into samples of one rate and layout without gaps, whatever the source does on the way.

Sources change rate and channels, leave out times, and restart their clocks. Independent of files and encoders.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np

_FORMAT = "flt"  # channels side by side: PyAV cannot fill eight planes
_GAP_S = Fraction(1, 10)  # smaller deviations are rounding, jitter, or a sound card's clock
_SILENCE_SAMPLES = 4096
RESTART_S = Fraction(1)
"""A time that goes back by more than this comes from a clock that was restarted; by less, from overlapping parts."""


class SteadySamples:
    """One sound from its start to its end. changes: the formats met, in order, if more than one."""

    def __init__(self, *, rate: int, layout: str, origin_s: Fraction) -> None:
        """rate (Hz), layout: of the samples given out. origin_s: the time in the source that becomes 0."""
        self._rate, self._layout = rate, layout
        self._channels = av.AudioLayout(layout).nb_channels if layout else 0
        self._origin_s = origin_s
        self._formats: list[str] = []
        self._format: tuple[str, str, int] | None = None
        self._resampler: av.AudioResampler | None = None
        self._taken_s = Fraction(0)  # of the output's time, up to here the source was taken
        self._given = 0
        self._surplus = 0  # samples to leave out: before 0, or given already

    @property
    def changes(self) -> list[str]:
        return self._formats if len(self._formats) > 1 else []

    def steady(self, frames: Iterator[av.AudioFrame]) -> Iterator[av.AudioFrame]:
        """The frames' samples as floats; pts counts samples from the origin."""
        for frame in frames:
            first = self._format is None
            shape = (frame.format.name, frame.layout.name, frame.sample_rate)
            late_s = self._late_s(frame)
            gap = late_s > (0 if first else _GAP_S)
            if shape != self._format or gap:
                yield from self._flushed()
                self._begin(shape)
            if gap:
                self._taken_s += late_s
                yield from self._silence(round(self._taken_s * self._rate) - self._given)
            elif late_s < (0 if first else -_GAP_S):
                self._surplus += round(-late_s * self._rate)
                self._taken_s += late_s
            self._taken_s += Fraction(frame.samples, frame.sample_rate)
            frame.pts = None
            assert self._resampler is not None
            yield from self._stamped(self._resampler.resample(frame))
        yield from self._flushed()

    def _late_s(self, frame: av.AudioFrame) -> Fraction:
        """How much later than the end of the samples before it a frame begins; a restarted clock goes on there."""
        if frame.pts is None or frame.time_base is None:
            return Fraction(0)
        late_s: Fraction = frame.pts * Fraction(frame.time_base) - self._origin_s - self._taken_s
        if self._format is not None and late_s < -RESTART_S:
            self._origin_s += late_s
            return Fraction(0)
        return late_s

    def _begin(self, shape: tuple[str, str, int]) -> None:
        if shape != self._format:
            self._formats.append(f"{shape[2]} Hz {shape[1]}")
        self._format = shape
        self._resampler = av.AudioResampler(format=_FORMAT, layout=self._layout, rate=self._rate)

    def _flushed(self) -> Iterator[av.AudioFrame]:
        if self._resampler is not None:
            yield from self._stamped(self._resampler.resample(None))
            self._resampler = None

    def _silence(self, samples: int) -> Iterator[av.AudioFrame]:
        while samples > 0:
            part = min(samples, _SILENCE_SAMPLES)
            yield from self._stamped([self._frame(np.zeros((1, part * self._channels), np.float32))])
            samples -= part

    def _stamped(self, frames: list[av.AudioFrame]) -> Iterator[av.AudioFrame]:
        for resampled in frames:
            frame = resampled
            if self._surplus:
                left_out = min(self._surplus, frame.samples)
                self._surplus -= left_out
                if left_out == frame.samples:
                    continue
                frame = self._frame(np.ascontiguousarray(frame.to_ndarray()[:, left_out * self._channels :]))
            frame.pts, frame.time_base, frame.sample_rate = self._given, Fraction(1, self._rate), self._rate
            self._given += frame.samples
            yield frame

    def _frame(self, samples: np.ndarray) -> av.AudioFrame:
        frame = av.AudioFrame.from_ndarray(samples, format=_FORMAT, layout=self._layout)
        frame.sample_rate = self._rate
        return frame
