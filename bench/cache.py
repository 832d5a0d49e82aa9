"""Measures what reuse across the frames of an image stream saves and costs, clip by clip.

`python -m bench.cache --json`: the bundled image model redraws clips that are made from the pictures in assets/, once
without reuse and once with each preset, in turns. Speed-up: of the whole frame, from push to pull, median of the
rounds. Fidelity: of the frames with reuse against those without. `--shape sd-turbo --device cuda`: published shapes
with random weights, speed only. `--drift`: how far colours wander in a long clip.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import torch

from bench.cache_clips import CLIPS, clip
from bench.cache_drift import DriftComparison, measure_drift
from bench.command import bench_parser, print_runs
from bench.fidelity import Judge
from bench.image_stream import describe_run
from bench.shapes import SHAPES, build
from cache.features.price import ReuseCounts
from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.image.engine import ImageEngine
from pipelines.load import load_engine

PRESETS = ("exact", "balanced", "fastest")
FPS = 24
_PROMPT = "a robot on the beach at sunset, pencil sketch"
_WARM_FRAMES = 12
_COMPILING_S = 900.0

Pictures = Sequence[npt.NDArray[np.uint8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """seconds: from the first push to the last pull, warm. outputs: the frames. counts: what was done with them."""

    seconds: float
    outputs: Pictures
    counts: ReuseCounts


def play(engine: ImageEngine, pictures: Pictures, reuse: str, control: Mapping[str, object]) -> Run:
    """Redraw a clip as fast as it goes, one frame a tick, in a stream of its own."""
    with engine.open(Control.of({**control, "reuse": reuse})) as stream:
        outputs: list[npt.NDArray[np.uint8]] = []
        start = time.perf_counter()
        for seq, picture in enumerate(pictures):
            frame = Frame(image=picture, pts=seq, time_base=Fraction(1, FPS), seq=seq)
            while not stream.push(frame):
                engine.tick()
                outputs += [f.image for f in stream.pull()]
            engine.tick()
            outputs += [f.image for f in stream.pull()]
        outputs += [f.image for f in stream.flush()]
        return Run(seconds=time.perf_counter() - start, outputs=outputs, counts=stream.reuse_counts)


def prepare(engine: ImageEngine, pictures: Pictures, control: Mapping[str, object]) -> None:
    """Warm up, and let the backend compile what that asked for."""
    for reuse in ("off", *PRESETS):
        play(engine, pictures[:_WARM_FRAMES], reuse, control)
    assert engine.preparation.wait(_COMPILING_S), "compiling takes too long"
    for reuse in ("off", *PRESETS):
        play(engine, pictures, reuse, control)


def measured(
    engine: ImageEngine,
    pictures: Pictures,
    presets: Sequence[str],
    control: Mapping[str, object],
    rounds: int,
    judge: Judge | None,
) -> list[dict[str, object]]:
    """Return a row of figures for each preset. judge: of this clip against its uncached run; None: speed only."""
    plain: list[Run] = []
    cached: dict[str, list[Run]] = {preset: [] for preset in presets}
    for _ in range(rounds):  # in turns, so that whatever else the machine does is shared
        plain.append(play(engine, pictures, "off", control))
        for preset in presets:
            cached[preset].append(play(engine, pictures, preset, control))
    rows = []
    for preset in presets:
        runs = cached[preset]
        ratios = sorted(before.seconds / run.seconds for before, run in zip(plain, runs, strict=True))
        counts = runs[0].counts
        row: dict[str, object] = {
            "cache": f"reuse {preset}",
            "preset": preset,
            "speed_up": round(statistics.median(ratios), 3),
            "speed_ups": [round(ratio, 3) for ratio in ratios],
            "plain_ms": _frame_ms(plain, pictures),
            "ms": _frame_ms(runs, pictures),
            "hit_rate": round(counts.hit_rate, 3),
            "computed": round(counts.computed, 3),
            "frames": {"full": counts.full, "store": counts.store, "windows": counts.windows, "hold": counts.hold},
        }
        if judge is not None:
            scores = judge.scores(runs[0].outputs)
            decibels = scores.fidelity.psnr_db
            row |= {"psnr_db": round(decibels, 2) if math.isfinite(decibels) else None, "scores": scores.record()}
        rows.append(row)
    return rows


def drifted(
    engine: ImageEngine, pictures: Pictures, presets: Sequence[str], control: Mapping[str, object]
) -> list[dict[str, object]]:
    """Return for each preset how far its colours wander, beside the run without reuse and the input."""
    inputs, plain = (measure_drift(run, FPS) for run in (pictures, play(engine, pictures, "off", control).outputs))
    rows = []
    for preset in presets:
        cached = measure_drift(play(engine, pictures, preset, control).outputs, FPS)
        rows.append({"preset": preset, **DriftComparison(cached=cached, uncached=plain, inputs=inputs).record()})
    return rows


def _frame_ms(runs: Sequence[Run], pictures: Pictures) -> float:
    return round(1e3 * statistics.median(run.seconds for run in runs) / len(pictures), 2)


def made_engine(args: argparse.Namespace) -> ImageEngine:
    """The bundled or given model, or a published shape with random weights."""
    if not args.shape:
        engine = load_engine(args.model, backend=args.backend, device=args.device)
        assert isinstance(engine, ImageEngine), f"{args.model} is no image model"
        return engine
    device = torch.device(args.device)
    parts = build(SHAPES[args.shape], device, torch.float16 if device.type == "cuda" else torch.float32)
    planned = args.backend == "compiled"
    return ImageEngine(parts.prepared_with(args.backend) if planned else parts.model_with(BACKENDS[args.backend]))


def main(argv: Sequence[str] | None = None) -> int:
    """Print the figures."""
    parser = bench_parser("cache", __doc__)
    parser.add_argument("--model", default="mini-image")
    parser.add_argument("--shape", default="", choices=("", *SHAPES), help="random weights of a published shape")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--clips", nargs="+", default=list(CLIPS), choices=tuple(CLIPS))
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    parser.add_argument("--frames", type=int, default=72)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=0, help="0: the model's default")
    parser.add_argument("--drift", action="store_true", help="measure how far colours wander instead; --frames 1440")
    args = parser.parse_args(argv)
    engine = made_engine(args)
    control: dict[str, object] = {"prompt": _PROMPT, "strength": 0.5}
    if args.steps or args.shape:
        control["steps"] = args.steps or 1
    runs: list[dict[str, object]] = []
    for name in args.clips:
        pictures = clip(name, frames=args.frames, size=(engine.core.width, engine.core.height), seed=0)
        if args.drift:
            runs += [{"clip": name, **row} for row in drifted(engine, pictures, args.presets, control)]
            continue
        prepare(engine, pictures, control)
        judge = None
        if not args.shape:
            reference = play(engine, pictures, "off", control).outputs
            judge = Judge(pictures, reference, cuts=CLIPS[name].cuts(args.frames))
        runs += [{"clip": name, **row} for row in measured(engine, pictures, args.presets, control, args.rounds, judge)]
        gc.collect()
    figures = describe_run(engine.core.model, "cache") | {"frames": args.frames, "rounds": args.rounds, "runs": runs}
    print_runs(figures, one_line=args.json)
    engine.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
