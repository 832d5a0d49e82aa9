"""Progress through a training stage's time budget."""

from __future__ import annotations

import time

CHECKPOINT_SECONDS = 120.0


class TimeBudget:
    """Progress through a budget of seconds: fraction() goes from 0 to 1; steps counts calls of tick()."""

    def __init__(self, seconds: float, min_steps: int = 2) -> None:
        self.seconds, self.min_steps, self.steps = seconds, min_steps, 0
        self.started = self.saved = time.monotonic()

    def due(self) -> bool:
        """Whether CHECKPOINT_SECONDS have passed since the start or since this was last true."""
        now = time.monotonic()
        if now - self.saved < CHECKPOINT_SECONDS:
            return False
        self.saved = now
        return True

    def elapsed(self) -> float:
        """Seconds since construction or since restart()."""
        return time.monotonic() - self.started

    def fraction(self) -> float:
        """Share of the budget spent, at most 1."""
        return min(1.0, self.elapsed() / max(self.seconds, 1e-6))

    def tick(self) -> bool:
        """Count a step; False once the time is spent and the minimum number of steps is reached."""
        self.steps += 1
        return self.elapsed() < self.seconds or self.steps <= self.min_steps
