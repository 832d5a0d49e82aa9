"""Owns the frame stage that blacks out pictures flagged by the model's safety checker. Independent of streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from pipelines.core.types import Frame

from .model import SafetyChecker


class SafetyStage:
    """The first stage of every stream whose model has a checker: later stages never see a flagged picture."""

    name = "safety"
    rate = Fraction(1)
    latency_frames = 0

    def __init__(self, checker: SafetyChecker) -> None:
        self._checker = checker

    def push(self, frames: Sequence[Frame]) -> list[Frame]:
        """Check frames together, in one batch, and replace the flagged pictures with black ones."""
        flagged = self._checker.check(np.stack([frame.image for frame in frames]))
        return [
            replace(frame, image=np.zeros_like(frame.image)) if bad else frame
            for frame, bad in zip(frames, flagged, strict=True)
        ]

    def flush(self) -> list[Frame]:
        """Return nothing: no frame is held back."""
        return []

    def reset(self) -> None:
        """Do nothing: there is no state."""
