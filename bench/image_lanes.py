"""Measures image ticks side by side, through the engine, beside bare graphs of the same networks in the same run.

`python -m bench.image_lanes --device cuda --json`: SD-Turbo's shape with random weights, image to image, frames from
and to host memory: one stream of one step, rings of two and four steps, four streams; each with one lane and more. Then
`--ticks` ticks of one stream while strength and guidance move in each and the prompt in every 50th, encoded by a text
network of the shape's size. Inputs differ.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch

from bench.command import bench_parser, print_runs
from bench.image_graphs import Frames, bare_fps
from bench.image_stream import describe_run, memory_figures, moving_frames
from bench.shapes import SHAPES, build
from bench.video_profile import matmul_tflops, profile
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel
from pipelines.image.stream import ImageStream

_WARM_TICKS = 40
_PICTURES = 64
_PROMPT_EVERY = 50
_COMPILING_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """control: of every stream. frames: what one tick does once the ring is full. side_by_side: whether bare graphs are
    compared in the same number as lanes: otherwise ticks depend on each other, and one graph is the reference."""

    control: Mapping[str, object]
    frames: Frames
    streams: int = 1
    side_by_side: bool = False


CASES: Mapping[str, Case] = MappingProxyType(
    {
        "1 step": Case(control={"steps": 1}, frames=Frames(encoded=1, rows=1), side_by_side=True),
        "2-step ring": Case(control={"steps": 2}, frames=Frames(encoded=1, rows=2)),
        "4-step ring, self-negative guidance": Case(
            control={"steps": 4, "guidance_mode": "self", "guidance_scale": 1.3}, frames=Frames(encoded=1, rows=4)
        ),
        "four streams, 1 step": Case(
            control={"steps": 1}, frames=Frames(encoded=4, rows=4), streams=4, side_by_side=True
        ),
    }
)


@dataclass(kw_only=True)
class Spread:
    """Seconds of many events."""

    values: list[float] = field(default_factory=list)

    def ms(self, *quantiles: float) -> list[float]:
        """Return quantiles in [0, 1], in milliseconds; 1 is the longest."""
        ordered = sorted(self.values)
        return [round(1e3 * ordered[min(len(ordered) - 1, int(q * len(ordered)))], 3) for q in quantiles]


class Saturated:
    """An engine whose streams get a new picture in every tick, as fast as it takes them.

    change: called before every tick with its number. gaps: between frames of the first stream. ticks: of `tick`.
    latency: from push to pull.
    """

    def __init__(
        self,
        model: ImageModel,
        case: Case,
        change: Callable[[Sequence[ImageStream], int], None] = lambda streams, tick: None,
    ) -> None:
        self.engine, self._change = ImageEngine(model), change
        control = {"prompt": "a cat", "strength": 0.5, "step_function": "lcm", **case.control}
        self.streams = [self.engine.open(Control.of({**control, "seed": seed})) for seed in range(case.streams)]
        self._pictures = moving_frames(_PICTURES, self.engine.core.width, self.engine.core.height)
        self._tick, self._last_s = 0, 0.0
        self._pushed: dict[tuple[int, int | None], float] = {}
        self.gaps, self.ticks, self.latency = Spread(), Spread(), Spread()

    def run(self, ticks: int) -> float:
        """Run ticks; returns the frames a second of all streams together."""
        for spread in (self.gaps, self.ticks, self.latency):
            spread.values.clear()
        self._pushed.clear()  # what is in flight has waited since the run before
        self._last_s = start = time.perf_counter()
        frames = sum(self._once() for _ in range(ticks))
        return frames / (self._last_s - start)

    def prepare(self) -> None:
        """Warm up, let the backend compile what that asked for, and warm up with it."""
        self.run(_WARM_TICKS)
        assert self.engine.core.runtime.preparation.wait(_COMPILING_S), "compiling takes too long"
        self.run(_WARM_TICKS)

    def close(self) -> None:
        """Close the streams. What was compiled stays, for the next engine with the same runtime."""
        for stream in self.streams:
            stream.close()
        self.engine.core.release_graphs()

    def _once(self) -> int:
        self._change(self.streams, self._tick)
        for number, stream in enumerate(self.streams):
            picture: Frame = self._pictures[(self._tick + 7 * number) % _PICTURES]
            self._pushed[number, self._tick] = time.perf_counter()
            assert stream.push(replace(picture, seq=self._tick))
        before = time.perf_counter()
        self.engine.tick()
        self.ticks.values.append(time.perf_counter() - before)
        out = [(number, frame) for number, stream in enumerate(self.streams) for frame in stream.pull()]
        now = time.perf_counter()
        pushed = [self._pushed.pop((number, frame.source_seq), None) for number, frame in out]
        self.latency.values += [now - at for at in pushed if at is not None]
        first = sum(number == 0 for number, _ in out)
        if first:
            self.gaps.values += [(now - self._last_s) / first] * first
            self._last_s = now
        self._tick += 1
        return len(out)


def measure(
    model: ImageModel,
    case: Case,
    ticks: int,
    change: Callable[[Sequence[ImageStream], int], None] = lambda streams, tick: None,
) -> dict[str, object]:
    """Measure one case once everything that it needs is compiled."""
    saturated = Saturated(model, case, change)
    saturated.prepare()
    gc.collect()
    gc.freeze()  # what has been loaded is not garbage: the collector need not look at it in mid-stream
    graphs = saturated.engine.core.lanes.graphs
    fps = saturated.run(ticks)
    gap, longest = saturated.gaps.ms(0.5, 0.95, 0.99, 1.0), saturated.ticks.ms(0.5, 0.99, 1.0)
    figures = {
        "lanes": model.runtime.lanes,
        "fps": round(fps, 1),
        "ms between frames, p50, p95, p99, longest": gap,
        "ms a tick, p50, p99, longest": longest,
        "ms from push to pull, p50, p99": saturated.latency.ms(0.5, 0.99),
        "graphs captured": saturated.engine.core.lanes.graphs - graphs,
    }
    gc.unfreeze()
    saturated.close()
    return figures


def everything_moves(streams: Sequence[ImageStream], tick: int) -> None:
    """Move strength and guidance in every tick, the prompt in every 50th."""
    control: dict[str, object] = {
        "strength": 0.4 + 0.5 * (37 * tick % 100) / 100,
        "guidance_scale": 1.05 + (13 * tick % 100) / 100,
    }
    if tick % _PROMPT_EVERY == 0:
        control["prompt"] = f"a cat, number {tick}"
    for stream in streams:
        stream.apply(Control.of(control))


def run(model: ImageModel, options: argparse.Namespace) -> list[dict[str, object]]:
    """Measure every case with each number of lanes, each beside its bare graphs."""
    rows: list[dict[str, object]] = []
    for name, case in CASES.items() if options.frames else ():
        for lanes in options.lanes:
            figures = measure(_with(model, lanes, case), case, options.frames // case.streams)
            bare = bare_fps(model, case.frames, lanes if case.side_by_side else 1, options.seconds)
            ratio = round(float(str(figures["fps"])) / bare, 3)
            rows.append({"what": name, **figures, "bare graphs fps": round(bare, 1), "of bare graphs": ratio})
    moving = Case(control={"steps": 1, "guidance_mode": "self"}, frames=Frames(encoded=1, rows=1))
    for lanes in options.lanes if options.ticks else ():
        figures = measure(_with(model, lanes, moving), moving, options.ticks, everything_moves)
        rows.append({"what": "everything moves", **figures})
    return [*rows, measure_kernels(model)] if options.profile else rows


def measure_kernels(model: ImageModel, ticks: int = 20) -> dict[str, object]:
    """Where the time of one stream's ticks of one step goes, one lane: milliseconds of `ticks` ticks together."""
    case = CASES["1 step"]
    saturated = Saturated(_with(model, 1, case), case)
    saturated.prepare()

    def run() -> None:
        saturated.run(ticks)
        torch.cuda.synchronize(model.device)

    found = profile(model.device, run)
    saturated.close()
    return {"what": "kernels", "ticks": ticks, **found, "matmul_tflops": matmul_tflops(model.device)}


def _with(model: ImageModel, lanes: int, case: Case) -> ImageModel:
    """Return the model with so many lanes; the case's steps are its default, so that an engine prepares for them."""
    return replace(model, runtime=replace(model.runtime, lanes=lanes), defaults={"steps": case.control["steps"]})


def main() -> int:
    parser = bench_parser("image_lanes", __doc__)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd-turbo", help="random weights in this shape")
    parser.add_argument("--device", default="cuda", help="cpu or cuda")
    parser.add_argument("--backend", default="cuda-graph", help="of pipelines.backends.table")
    parser.add_argument("--lanes", type=int, nargs="+", default=[1, 2, 3], help="ticks side by side")
    parser.add_argument("--frames", type=int, default=600, help="timed frames of each case; 0: leave them out")
    parser.add_argument("--ticks", type=int, default=10_000, help="while everything moves; 0: leave it out")
    parser.add_argument("--seconds", type=float, default=2.0, help="for which bare graphs run")
    parser.add_argument("--profile", action="store_true", help="also the kernels of a tick, by kind (CUDA)")
    options = parser.parse_args()
    device = torch.device(options.device)
    parts = build(SHAPES[options.shape], device, torch.float16 if device.type == "cuda" else torch.float32)
    with contextlib.redirect_stdout(sys.stderr):  # what the backend reports
        model = parts.encoding_texts(parts.prepared_with(options.backend))
        figures = {**describe_run(model, "image_lanes"), "backend": options.backend, "shape": options.shape}
        figures |= {"runs": run(model, options), **memory_figures(model)}
        model.runtime.preparation.close()
    print_runs(figures, one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
