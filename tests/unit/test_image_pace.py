"""The spacing of ticks that run side by side, on a simulated device that its lanes share equally."""

from __future__ import annotations

import itertools
import random
from statistics import median

import pytest

from pipelines.image.pace import Pace

WORK_MS = 5.8  # of a tick alone
HOST_MS = 0.5  # between two ticks
SPEED = {0: 1.0, 1: 1.0, 2: 1.29, 3: 1.42}  # of so many ticks at once, relative to one; measured on one H200


class Device:
    """A clock, and what is left to do in each lane, oldest tick first."""

    def __init__(self, lanes: int) -> None:
        self.now = 0.0
        self.lanes: list[list[tuple[int, float]]] = [[] for _ in range(lanes)]
        self.ended: dict[int, float] = {}

    def issue(self, tick: int, work: float) -> None:
        self.lanes[tick % len(self.lanes)].append((tick, work))

    def run(self, until: float) -> None:
        """Advance the clock."""
        while True:
            busy = [lane for lane in self.lanes if lane]
            if not busy:
                self.now = until
                return
            speed = SPEED[len(busy)] / len(busy)
            step = min(lane[0][1] for lane in busy) / speed
            if self.now + step > until:
                step = until - self.now
            for lane in busy:
                tick, left = lane[0]
                if left - step * speed <= 1e-9:
                    lane.pop(0)
                    self.ended[tick] = self.now + step
                else:
                    lane[0] = (tick, left - step * speed)
            self.now += step
            if self.now >= until - 1e-12:
                return

    def wait(self, tick: int) -> bool:
        """Advance until a tick has ended. Returns whether it had not."""
        waited = tick not in self.ended
        while tick not in self.ended:
            self.run(self.now + 0.01)
        return waited


def intervals(lanes: int, *, paced: bool, ticks: int = 400, noise: float = 0.01) -> list[float]:
    """Return the times between the ends of ticks, in ms, of a host that is always ahead."""
    device, choose = Device(lanes), random.Random(0)
    pace = Pace(lanes, clock=lambda: device.now / 1e3, sleep=lambda s: device.run(device.now + 1e3 * s))
    for tick in range(ticks):
        if paced:
            pace.before_start()
        device.run(device.now + HOST_MS)
        device.issue(tick, WORK_MS * choose.uniform(1 - noise, 1 + noise))
        waited = tick >= lanes and device.wait(tick - lanes)
        pace.started(waited=waited)
    ends = sorted(device.ended.values())[20:]
    return [b - a for a, b in itertools.pairwise(ends)]


@pytest.mark.parametrize("lanes", [2, 3])
def test_frames_leave_evenly(lanes: int) -> None:
    free, paced = (sorted(intervals(lanes, paced=paced)) for paced in (False, True))
    assert free[int(0.99 * len(free))] > 1.5 * median(free)
    assert paced[int(0.99 * len(paced))] <= 1.3 * median(paced)
    assert sum(paced) <= 1.02 * sum(free), "at hardly any cost"


def test_ticks_that_come_when_they_come_are_not_delayed() -> None:
    now = [0.0]
    pace = Pace(2, clock=lambda: now[0])
    for _ in range(20):  # two cameras, in pairs
        for gap in (0.001, 0.032):
            now[0] += gap
            assert pace.delay_s() == 0
            pace.started(waited=False)


def test_one_lane_is_never_delayed() -> None:
    now = [0.0]
    pace = Pace(1, clock=lambda: now[0])
    for gap in (0.001, 0.009) * 5:
        now[0] += gap
        assert pace.delay_s() == 0
        pace.started(waited=True)
