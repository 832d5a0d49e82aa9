"""Owns the spacing of ticks that run side by side, so that frames leave at even intervals. Independent of devices.

Ticks that share a device equally keep the distance at which they started. Two that started together also end together,
and so do all that follow them in their lanes: frames would leave in pairs. A tick that is about to start too close
behind the one before is therefore started later, once; its successors keep the distance. (tests/unit/test_image_pace.py
simulates it.)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

_CLOSEST = 0.85  # of the mean interval between starts


class Pace:
    """Knows when ticks have started, and delays one if needed.

    Only while the host is ahead of the device: otherwise ticks start when inputs arrive. With one lane it does nothing.
    """

    def __init__(
        self,
        lanes: int,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """clock: in seconds."""
        self._lanes, self._clock, self._sleep = lanes, clock, sleep
        self._starts: deque[float] = deque(maxlen=2 * lanes + 1)

    def started(self, *, waited: bool) -> None:
        """Call when a tick has been issued and the one before in its lane has ended, so that it starts now. waited:
        whether the host had to wait for that."""
        if not waited:
            self._starts.clear()
        self._starts.append(self._clock())

    def before_start(self) -> None:
        """Call before the next tick is issued; sleeps if it would start too close behind the last one."""
        delay = self.delay_s()
        if delay > 0:
            self._sleep(delay)

    def delay_s(self) -> float:
        """Return how much later the next tick should be issued, in seconds.

        It starts when the one before in its lane ends, which takes as long as K ticks take on average.
        """
        starts, lanes = self._starts, self._lanes
        if lanes == 1 or len(starts) < 2 * lanes + 1:
            return 0.0
        now, interval = self._clock(), (starts[-1] - starts[0]) / (2 * lanes)
        expected = max(now, starts[-lanes] + lanes * interval)
        closest = starts[-1] + _CLOSEST * interval
        return max(0.0, closest - now) if expected < closest else 0.0
