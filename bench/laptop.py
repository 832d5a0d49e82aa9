"""Measures what a laptop gets: the bundled models in the engine on two CPU threads, backends in turns within one run.

`python -m bench.laptop --json`: mini-image redraws pictures that all differ (two steps in the ring: each tick takes a
picture and gives one), mini-video makes chunks of 3 and of 1 latents with its window full. In each round every backend
makes some frames or chunks; a ratio is the median over the rounds of neighbours. Plans that are missing are built
first. `others_cores`: how many cores other programs used meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil

from app.worker.threads import limit_spinning
from bench.command import bench_parser, print_listing

PARTS = ("encode", "denoise", "decode")
_BUILD_S = 1800.0
_PROMPT = "a robot on the beach, pencil sketch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row of figures. size: latents of a chunk; 0: an image model, which makes a frame a step."""

    model: str
    size: int
    steps: int  # frames or chunks of a round


CASES: Mapping[str, Case] = {
    "mini-image": Case(model="mini-image", size=0, steps=24),
    "mini-video, chunks of 3": Case(model="mini-video", size=3, steps=6),
    "mini-video, chunks of 1": Case(model="mini-video", size=1, steps=12),
}


@dataclass(kw_only=True)
class Runner:
    """One backend's engine, and what was measured. step: makes the next frame, or the next chunk of `frames`."""

    engine: Any
    step: Callable[[], None]
    frames: int
    rounds_s: list[list[float]] = field(default_factory=list)  # of each step, by round
    cpu_s: list[float] = field(default_factory=list)  # of each step
    parts_ms: list[Mapping[str, float]] = field(default_factory=list)  # of each step

    def play(self, steps: int) -> None:
        """Make some steps, after one that is not counted: another backend has used the processor's caches."""
        self.step()
        self.rounds_s.append([self._timed() for _ in range(steps)])

    def _timed(self) -> float:
        tick, cpu_s, start_s = self.engine.core.next_tick, time.process_time(), time.perf_counter()
        self.step()
        seconds = time.perf_counter() - start_s
        self.cpu_s.append(time.process_time() - cpu_s)
        timings = [timing for timing in self.engine.log.timings() if timing.tick >= tick]
        self.parts_ms.append({part: sum(getattr(each, f"{part}_ms") for each in timings) for part in PARTS})
        return seconds

    def figures(self) -> dict[str, float]:
        """Milliseconds of a step: p50, p95, CPU time, each part and the rest; frames a second at p50."""
        every = sorted(seconds for seconds_of in self.rounds_s for seconds in seconds_of)
        p50 = statistics.median(every)
        parts = {f"{part}_ms": statistics.median(each[part] for each in self.parts_ms) for part in PARTS}
        rest = statistics.median(
            1e3 * seconds - sum(parts.values())
            for seconds, parts in zip((s for r in self.rounds_s for s in r), self.parts_ms, strict=True)
        )
        found = {
            "fps": self.frames / p50,
            "p50_ms": 1e3 * p50,
            "p95_ms": 1e3 * every[min(len(every) - 1, int(0.95 * len(every)))],
            "cpu_ms": 1e3 * statistics.median(self.cpu_s),
            **parts,
            "rest_ms": rest,
        }
        return {name: round(value, 2) for name, value in found.items()}


def runner(case: Case, backend: str) -> Runner:
    """Load an engine, wait until all that its backend compiles is in use, and let it work for a while."""
    from pipelines.core.controls import Control
    from pipelines.load import load_engine

    video = {"chunk_frames": case.size, "max_streams": 1} if case.size else {}
    engine = load_engine(case.model, backend=backend, device="cpu", notice=lambda text: None, video=video)
    controls = {"prompt": _PROMPT} | ({} if case.size else {"steps": 2, "strength": 0.5, "guidance_mode": "none"})
    stream = engine.open(Control.of(controls))
    made = Runner(engine=engine, frames=1, step=(_chunks if case.size else _frames)(engine, stream))
    for _ in range(2):  # what is built meanwhile is in use afterwards
        for _ in range(8):
            made.step()
        if not engine.preparation.wait(_BUILD_S):
            raise SystemExit(f"{backend} did not get ready in {_BUILD_S:g} s: {engine.preparation.status}")
    made.frames = stream.info.frames_per_chunk  # a stream's first chunk has fewer
    return made


def _frames(engine: Any, stream: Any) -> Callable[[], None]:
    """Redraw the next of some pictures that all differ; a step ends with the next frame."""
    from bench.image_stream import moving_frames

    pictures = moving_frames(64, engine.core.width, engine.core.height)
    number = 0

    def step() -> None:
        nonlocal number
        pulled: list[Any] = []
        while not pulled:
            number += stream.push(pictures[number % len(pictures)])
            engine.tick()
            pulled = stream.pull()

    return step


def _chunks(engine: Any, stream: Any) -> Callable[[], None]:
    """Make the next chunk; the stream is kept full."""

    def step() -> None:
        pulled: list[Any] = []
        while not pulled:
            while stream.generate(stream.info.frames_per_chunk):
                pass
            engine.tick()
            pulled = stream.pull()

    return step


def measured(case: Case, backends: Sequence[str], rounds: int, pause_s: float) -> dict[str, Any]:
    """Return the figures of each backend, and each one's ratio to the first: how many times as fast."""
    runners = {backend: runner(case, backend) for backend in backends}
    others = 0.0
    for number in range(rounds):
        time.sleep(pause_s)
        before = _busy_s()
        for backend in list(backends)[:: -1 if number % 2 else 1]:
            runners[backend].play(case.steps)
        others += _busy_s() - before
    medians = {name: [statistics.median(times) for times in each.rounds_s] for name, each in runners.items()}
    figures: dict[str, Any] = {name: each.figures() for name, each in runners.items()}
    for name in list(backends)[1:]:
        ratios = [old / new for old, new in zip(medians[backends[0]], medians[name], strict=True)]
        figures[name]["times_as_fast"] = round(statistics.median(ratios), 2)
        figures[name]["times_lowest_highest"] = [round(min(ratios), 2), round(max(ratios), 2)]
    elapsed = sum(seconds for each in runners.values() for times in each.rounds_s for seconds in times)
    figures["others_cores"] = round(max(0.0, others) / elapsed, 2)
    for each in runners.values():
        each.engine.close()
    return figures


def _busy_s() -> float:
    """CPU seconds of all programs of this machine but this one."""
    times, own = psutil.cpu_times(), psutil.Process().cpu_times()
    return float(times.user + times.nice + times.system - own.user - own.system)


def main() -> None:
    """Measure and print."""
    parser = bench_parser("laptop", __doc__)
    parser.add_argument("--rows", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--backends", nargs="+", default=["eager", "openvino", "openvino-bf16"], help="the first: old")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--pause-s", type=float, default=0.0, help="before each round, where other programs wait")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    limit_spinning()  # as `zoetrope` does
    import torch

    from app.measure.machine import cpu_name
    from pipelines.files.precision import cpu_flags

    torch.set_num_threads(options.threads)
    found = {name: measured(CASES[name], options.backends, options.rounds, options.pause_s) for name in options.rows}
    machine = {"processor": cpu_name(), "cpu_flags": list(cpu_flags()), "threads": options.threads}
    result = {"bench": "laptop", **machine, "torch": torch.__version__, "rounds": options.rounds, **found}
    print_listing(result, one_line=options.json)


if __name__ == "__main__":
    main()
