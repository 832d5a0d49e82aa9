"""A subject that is a function: each call takes its input from host memory, waits, and leaves its frames there."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch

from app.measure.card import Setup
from app.measure.figures import Segment
from app.measure.machine import describe_machine
from app.measure.meters import PeakMemory, energy_meter
from app.measure.subject import Begun


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What is known of a subject before its first call. See `Setup`. dtype: of the denoiser."""

    subject: str
    model: str
    weights: str
    size_px: tuple[int, int]
    task: str
    steps: int
    dtype: torch.dtype
    backend: str
    counted: str
    gap_of: str
    latency: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """call: makes `frames` frames and returns when they are done. depth: a call returns the frames of the input that
    the depth-th last call took (1: its own); 0: a call has no input, so that there is no latency. warm_up_calls,
    warm_up_s: excluded, whichever lasts longer.
    """

    call: Callable[[], object]
    frames: int = 1
    depth: int = 1
    warm_up_calls: int = 10
    warm_up_s: float = 5.0


class CallSubject:
    """See `app.measure.subject.Subject`. Warms up when it is made."""

    def __init__(self, calls: Calls, about: About, memory: PeakMemory, device: torch.device, begun: Begun) -> None:
        """Everything is loaded. memory: begun before loading."""
        load_s = begun.elapsed_s
        self._calls, self._memory = calls, memory
        self._energy, self.machine = energy_meter(device), describe_machine(device)
        begun.say(f"warming up {about.subject}…")
        started, count = time.perf_counter(), 1
        calls.call()
        first_frame_s = begun.elapsed_s
        after_first = time.perf_counter()
        while count < calls.warm_up_calls or time.perf_counter() - after_first < calls.warm_up_s:
            calls.call()
            count += 1
        self.setup = Setup(
            subject=about.subject,
            model=about.model,
            weights=about.weights,
            size_px=about.size_px,
            task=about.task,
            steps=about.steps,
            precision=str(about.dtype).removeprefix("torch."),
            backend=about.backend,
            why="one of those compared",
            threads=torch.get_num_threads(),
            counted=about.counted,
            gap_of=about.gap_of,
            latency=about.latency,
            load_s=load_s,
            first_frame_s=first_frame_s,
            ready_s=first_frame_s,
            warm_up_frames=count * calls.frames,
            warm_up_s=time.perf_counter() - started,
            memory=memory.what,
            energy=self._energy.what,
            notes=about.notes,
        )

    def measure(self, seconds: float) -> Segment:
        """See `Subject.measure`."""
        calls = self._calls
        self._calls.call()  # after the others had the device
        self._energy.start()
        started = last = time.perf_counter()
        starts: deque[float] = deque(maxlen=max(1, calls.depth))
        gaps: list[float] = []
        latencies: list[float] = []
        while last - started < seconds:
            starts.append(last)
            calls.call()
            now = time.perf_counter()
            gaps.append(1e3 * (now - last))
            if calls.depth and len(starts) == calls.depth:
                latencies.append(1e3 * (now - starts[0]))
            last = now
        return Segment(
            frames=len(gaps) * calls.frames,
            seconds=last - started,
            gaps_ms=tuple(gaps),
            latencies_ms=tuple(latencies),
            joules=self._energy.joules(),
            peak_memory_mib=self._memory.mib(),
        )

    def close(self) -> None:
        """Nothing to release: the process ends."""
