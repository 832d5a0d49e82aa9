"""A subject that is an engine of this project, fed as the live worker feeds it, from host memory to host memory.

Independent of where the engine comes from; `live_model` loads one by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.tick_log import BirthRecord
from pipelines.core.types import Frame, StreamInfo
from pipelines.files.loader_options import LoaderOptions

from .camera import camera_pictures, endless_camera
from .card import Machine, Setup
from .feed import CameraFeed, Feed, PromptFeed, turn
from .figures import Segment
from .machine import describe_machine
from .meters import PeakMemory, energy_meter, peak_memory
from .subject import Begun

Camera = Callable[[int, int], Iterator[Frame]]
"""Makes an endless input of a size: width, height in pixels."""

if TYPE_CHECKING:
    import torch


HOST_TO_HOST = "from pictures in host memory to frames in host memory, every frame"
PUSH_TO_PICTURE = "from push to picture"
FROM_PROMPT = "from the request to frames in host memory, every frame"
WARM_UP_S = 5.0
"""Warm-up lasts at least this long after the first frame."""
WARM_UP_FRAMES = {"image": 24, "video": 108}
"""And until so many more frames of a stream: then Wan's window of 21 latents is full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEngine:
    """A loaded engine and what its card says of it. See `Setup` for the texts. model: "": the engine's own name.

    threads: CPU threads in use. load_s: from the start of the process. memory: begun before loading. notices: what
    the engine has said to its user; it may still grow.
    """

    engine: Engine
    model: str = ""
    device: torch.device
    weights: str
    why: str
    threads: int
    load_s: float
    memory: PeakMemory
    notices: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """How to run it. control: of every stream. camera: the input; None: from the prompt alone. warm_up_s,
    warm_up_frames (0: by kind of model): see WARM_UP_S and WARM_UP_FRAMES."""

    control: Control = field(default_factory=Control)
    camera: Camera | None = None
    streams: int = 1
    warm_up_s: float = WARM_UP_S
    warm_up_frames: int = 0


def clip_camera(width: int, height: int) -> Iterator[Frame]:
    """Return the bundled camera clip, for ever."""
    return endless_camera(camera_pictures(width, height))


class LiveSubject:
    """See `Subject`. Opens the streams and warms up when it is made."""

    def __init__(self, live: LiveEngine, run: LiveRun, begun: Begun) -> None:
        self._live, self._run = live, run
        self._engine, self._energy = live.engine, energy_meter(live.device)
        self._feeds = [self._open() for _ in range(run.streams)]
        self._machine = describe_machine(live.device)
        begun.say("warming up…")
        started = time.perf_counter()
        frames = self._until(lambda arrivals, _: arrivals > 0)
        first_frame_s = begun.elapsed_s
        wanted = (run.warm_up_frames or WARM_UP_FRAMES[self._info.engine]) * run.streams
        frames += self._until(lambda _, frames: frames >= wanted, seconds=run.warm_up_s)
        ready_s = first_frame_s
        while not self._engine.preparation.wait(0.0):
            self._wait_for_parts(begun)
            ready_s = begun.elapsed_s
            frames += self._until(lambda _, frames: frames >= wanted, seconds=run.warm_up_s)
        times = (first_frame_s, ready_s, time.perf_counter() - started)
        self._setup = self._describe(times, frames)

    @property
    def machine(self) -> Machine:
        """The machine that it runs on."""
        return self._machine

    @property
    def setup(self) -> Setup:
        """What it runs."""
        return self._setup

    def measure(self, seconds: float) -> Segment:
        """See `Subject.measure`. What was in flight since the last stretch arrives first, and does not count."""
        self._settle()
        streams = len(self._feeds)
        self._energy.start()
        started_ns = last_ns = time.monotonic_ns()
        lasts: list[int | None] = [None] * streams
        gaps: list[float] = []
        latencies: list[float] = []
        frames = 0
        while (last_ns - started_ns) / 1e9 < seconds or len(gaps) < streams:
            for number, arrival in enumerate(turn(self._engine, self._feeds)):
                if arrival is None:
                    continue
                before, lasts[number], last_ns = lasts[number], arrival.at_ns, arrival.at_ns
                if before is not None:
                    gaps.append((arrival.at_ns - before) / 1e6)
                frames += arrival.frames
                latencies += arrival.latencies_ms
        return Segment(
            frames=frames,
            seconds=(last_ns - started_ns) / 1e9,
            gaps_ms=tuple(gaps),
            latencies_ms=tuple(latencies),
            joules=self._energy.joules(),
            peak_memory_mib=self._live.memory.mib(),
        )

    def close(self) -> None:
        """Close the engine and its streams."""
        self._engine.close()

    @property
    def _info(self) -> StreamInfo:
        return self._feeds[0].stream.info

    def _open(self) -> Feed:
        stream = self._engine.open(self._run.control)
        if self._run.camera is None:
            return PromptFeed(stream)
        return CameraFeed(stream, self._run.camera(stream.info.width, stream.info.height))

    def _until(self, enough: Callable[[int, int], bool], seconds: float = 0.0) -> int:
        """Run until enough(arrivals, frames) and for at least that long. Returns the number of frames."""
        arrivals, frames, started = 0, 0, time.perf_counter()
        while not enough(arrivals, frames) or time.perf_counter() - started < seconds:
            arrived = [arrival for arrival in turn(self._engine, self._feeds) if arrival is not None]
            arrivals, frames = arrivals + len(arrived), frames + sum(arrival.frames for arrival in arrived)
        return frames

    def _wait_for_parts(self, begun: Begun) -> None:
        """Wait without ticks, which would take the cores from what compiles; the next tick uses what is ready."""
        begun.say("waiting for compiled parts…")
        preparation, said = self._engine.preparation, ""
        while not preparation.wait(1.0):
            status = preparation.status
            if status.step not in ("", said):
                said = status.step
                begun.say(f"{status.percent} %: {said}")

    def _settle(self) -> None:
        """Run until every stream has returned frames that were pushed or requested since the call."""
        resumed_ns = time.monotonic_ns()
        stale = set(range(len(self._feeds)))
        while stale:
            for number, arrival in enumerate(turn(self._engine, self._feeds)):
                if arrival is not None and max(arrival.latencies_ms, default=0.0) < (arrival.at_ns - resumed_ns) / 1e6:
                    stale.discard(number)

    def _describe(self, times: tuple[float, float, float], frames: int) -> Setup:
        """times: first_frame_s, ready_s, warm_up_s."""
        first_frame_s, ready_s, warm_up_s = times
        info, live = self._info, self._live
        chunk = info.max_frames
        camera = self._run.camera is not None
        return Setup(
            subject="zoetrope",
            model=live.model or info.model,
            weights=live.weights,
            size_px=(info.width, info.height),
            task=f"{info.engine} to {info.engine}" if camera else "from the prompt alone",
            steps=_steps(self._engine),
            streams=len(self._feeds),
            precision=info.dtype,
            backend=info.backend,
            why=live.why,
            threads=live.threads,
            counted=HOST_TO_HOST if camera else FROM_PROMPT,
            gap_of=f"chunks of {chunk} frames" if chunk > 1 else "frames",
            latency=PUSH_TO_PICTURE if camera else "from request to picture",
            load_s=live.load_s,
            first_frame_s=first_frame_s,
            ready_s=ready_s,
            warm_up_frames=frames,
            warm_up_s=warm_up_s,
            memory=live.memory.what,
            energy=self._energy.what,
            notes=tuple(filter(None, [*live.notices, self._engine.preparation.status.failed])),
        )


def _steps(engine: Engine) -> int:
    """The denoising steps of the newest slot or chunk; 0 for an engine without steps."""
    births = (record for record in reversed(engine.log.records()) if isinstance(record, BirthRecord))
    newest = next(births, None)
    return 0 if newest is None else len(newest.timesteps)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """A model that a user names, and how to run it. threads: 0: the library's default. camera: for image models."""

    model: str
    options: LoaderOptions = field(default_factory=LoaderOptions)
    control: Control = field(default_factory=Control)
    threads: int = 0
    camera: Camera = clip_camera
    warm_up_s: float = WARM_UP_S


def live_model(request: ModelRequest, begun: Begun) -> LiveSubject:
    """Load the model as the worker does and warm it up: an image model with a camera, a video model from its prompt
    alone. Raises ZoetropeError."""
    from pipelines.files.hub import bundled_names
    from pipelines.files.precision import choose_device
    from pipelines.kinds import LoadContext, chosen_backend, kind_of

    begun.say(f"loading {request.model}…")
    kind = kind_of(request.model)
    threads, device = kind.use_threads(request.threads), choose_device(request.options.device)
    memory = peak_memory(device)
    choice = chosen_backend(kind, request.options)
    notices: list[str] = []
    engine = kind.load(request.model, request.options, LoadContext(notice=begun.noting(notices)))
    live = LiveEngine(
        engine=engine,
        device=device,
        weights="bundled" if request.model in bundled_names() else "the model's own",
        why=choice.why if choice is not None else "it has no network",
        threads=threads,
        load_s=begun.elapsed_s,
        memory=memory,
        notices=notices,
    )
    camera = None if kind.name == "video" else request.camera
    run = LiveRun(control=request.control, camera=camera, warm_up_s=request.warm_up_s)
    return LiveSubject(live, run, begun)
