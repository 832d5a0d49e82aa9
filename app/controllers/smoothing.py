"""Exponential smoothing of a control towards a target. The caller passes the time."""

from __future__ import annotations

import math

_DONE = 1e-3  # of the distance when the target was set


class Smoother:
    """A first-order low pass: value += (target - value) * (1 - exp(-dt / smoothing)).

    The first target is taken immediately. Exact for any call spacing, since the target is constant in between.
    """

    def __init__(self, smoothing_ms: float) -> None:
        self._smoothing_s = smoothing_ms / 1000
        self._value: float | None = None
        self._target = 0.0
        self._span = 0.0
        self._at_s = 0.0

    def aim(self, target: float, now_s: float) -> None:
        """Start moving towards `target`."""
        if self._value is None or self._smoothing_s == 0:
            self._value = target
        else:
            self._value = self.at(now_s)
        self._target, self._at_s = target, now_s
        self._span = abs(target - self._value)

    def at(self, now_s: float) -> float:
        """The value at `now_s` (must not decrease); exactly the target after 99.9 % of the distance."""
        assert self._value is not None, "aim first"
        if self._smoothing_s > 0:
            passed_s = max(0.0, now_s - self._at_s)
            self._value += (self._target - self._value) * -math.expm1(-passed_s / self._smoothing_s)
            self._at_s = max(self._at_s, now_s)
        if abs(self._target - self._value) <= _DONE * self._span:
            self._value = self._target
        return self._value

    @property
    def settled(self) -> bool:
        """Whether the value has reached the target."""
        return self._value == self._target
