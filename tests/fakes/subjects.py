"""Subjects for contests that need no network: they count, wait, fail or die, in real processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass

from app.measure.card import Machine, Setup
from app.measure.figures import Segment
from app.measure.subject import Begun
from pipelines.core.errors import OutOfMemoryError

MACHINE = Machine(
    device="a device",
    memory_gib=1.0,
    cpu="a device",
    cpu_features=("avx2",),
    cores=2,
    system="Linux x86_64",
    driver="",
    versions={"python": "3.11"},
)


def setup(subject: str, *, counted: str = "everything", first_frame_s: float = 0.5) -> Setup:
    return Setup(
        subject=subject,
        model="a model",
        weights="random",
        size_px=(8, 6),
        task="image to image",
        steps=2,
        precision="float32",
        backend="eager",
        why="the only one",
        threads=1,
        counted=counted,
        gap_of="frames",
        latency="from push to picture",
        load_s=0.25,
        first_frame_s=first_frame_s,
        ready_s=first_frame_s,
        warm_up_frames=3,
        warm_up_s=0.1,
        memory="what was allocated",
        energy="no meter here",
    )


@dataclass(frozen=True)
class Turns:
    """Each stretch has two frames; when it began is in its only latency, seconds on a clock that processes share."""

    setup: Setup
    fps: float
    fails_at: int = 0
    dies_at: int = 0
    machine: Machine = MACHINE
    seen: list[float] | None = None

    def measure(self, seconds: float) -> Segment:
        assert self.seen is not None
        self.seen.append(seconds)
        if len(self.seen) == self.fails_at:
            raise OutOfMemoryError("The device has no memory left.", "Close something.")
        if len(self.seen) == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        began = time.monotonic()
        time.sleep(0.01)
        return Segment(
            frames=2,
            seconds=2 / self.fps,
            gaps_ms=(1e3 / self.fps,),
            latencies_ms=(began,),
            joules=None,
            peak_memory_mib=1.0,
        )

    def close(self) -> None:
        pass


def turns(name: str, fps: float, fails_at: int, dies_at: int, begun: Begun) -> Turns:
    begun.say(f"{name} is here")
    print(f"{name} writes to standard output")  # noqa: T201  # as peers do
    counted = "everything" if name != "more" else "more"
    return Turns(setup(name, counted=counted), fps, fails_at, dies_at, seen=[])


def broken(begun: Begun) -> Turns:
    raise ValueError("no such layer\nsecond line")
