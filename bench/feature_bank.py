"""Measures the feature bank of image streams: warp error with and without it, and what it costs.

`python -m bench.feature_bank --json`: mini-image redraws short clips (assets/samples/camera.mp4, and a still camera, a
pan and a zoom made from photographs in assets/samples/photos), with the same noise for every frame and with noise of
its own for each. Every output is compared with the next one along the motion of the *input*: what motion does not
explain. The input's own error beside it is what a perfect redrawing would have.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from bench.command import bench_parser, print_runs
from pipelines.core.controls import Control
from pipelines.core.types import Frame, Picture
from pipelines.image.engine import ImageEngine
from pipelines.image.feature_bank.runtime import bank_of
from pipelines.load import load_engine

SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
PROMPT = "a robot on the beach at sunset, pencil sketch"
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "off": {"bank": False},
    "attention": {"bank": True, "bank_strength": 0.0},
    "attention+fusion": {"bank": True, "bank_strength": 0.8},
}
_SKIPPED = 4  # first frames: the bank fills


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """From an input frame to the next. there: [H, W, 2] float32, where each pixel comes to lie, (x, y). valid: [H, W]
    bool, whether it is seen in both."""

    there: npt.NDArray[np.float32]
    valid: npt.NDArray[np.bool_]

    @classmethod
    def between(cls, first: Picture, second: Picture) -> Motion:
        """Dense inverse search flow (Kroeger et al. 2016); occluded where the flow back disagrees, |f + b|^2 >
        0.01 (|f|^2 + |b|^2) + 0.5 (Sundaram et al. 2010)."""
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second)]
        search: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        forward, backward = search.calc(grey[0], grey[1], None), search.calc(grey[1], grey[0], None)
        height, width = grey[0].shape
        place = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)
        there = place + forward
        back = cv2.remap(backward, there[..., 0], there[..., 1], cv2.INTER_LINEAR)
        inside = ((there >= 0) & (there <= (width - 1, height - 1))).all(-1)
        square = (forward**2).sum(-1) + (back**2).sum(-1)
        agrees = ((forward + back) ** 2).sum(-1) <= 0.01 * square + 0.5
        return cls(there=there, valid=inside & agrees)

    def error(self, first: Picture, second: Picture) -> float:
        """Mean |first(x) - second(x + f)| over what is seen in both, in levels of 0..255."""
        moved = cv2.remap(second.astype(np.float32), self.there[..., 0], self.there[..., 1], cv2.INTER_LINEAR)
        return float(np.abs(moved - first)[self.valid].mean())


def clips(side: int, frames: int) -> dict[str, list[Picture]]:
    """Return the clips by name, [side, side, 3] each frame."""
    noise = np.random.default_rng(5)
    photo = cv2.cvtColor(cv2.imread(str(SAMPLES / "photos" / "20.jpg")), cv2.COLOR_BGR2RGB)
    far = cv2.resize(photo, (side * 4 // 3, side * 4 // 3), interpolation=cv2.INTER_CUBIC)
    room = side // 3 - 1
    still = far[:side, :side].astype(float)
    return {
        "camera": list(_camera(side, frames)),
        "still": [
            np.clip(np.round(still + noise.normal(0, 2, still.shape)), 0, 255).astype(np.uint8) for _ in range(frames)
        ],
        "pan": [_window(far, min(1.5 * t, room), room / 2, side) for t in range(frames)],
        "zoom": [_window(far, t * room / 2 / frames, t * room / 2 / frames, side, t / frames) for t in range(frames)],
    }


def _window(picture: Picture, left: float, top: float, side: int, nearer: float = 0.0) -> Picture:
    """Return a window at a fraction of a pixel. nearer: 1 shows a quarter less along each axis."""
    scale = 1 - nearer / 4
    matrix = np.array([[scale, 0, left], [0, scale, top]])
    how = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(picture, matrix, (side, side), flags=how, borderMode=cv2.BORDER_REFLECT_101))


def _camera(side: int, frames: int) -> Iterator[Picture]:
    reader = cv2.VideoCapture(str(SAMPLES / "camera.mp4"))
    for _ in range(frames):
        read, picture = reader.read()
        assert read, f"camera.mp4 has fewer than {frames} frames"
        height, width = picture.shape[:2]
        left = (width - height) // 2
        square = cv2.resize(picture[:, left : left + height], (side, side), interpolation=cv2.INTER_AREA)
        yield cv2.cvtColor(square, cv2.COLOR_BGR2RGB)
    reader.release()


def redrawn(engine: ImageEngine, clip: Sequence[Picture], control: Mapping[str, object]) -> tuple[list[Picture], float]:
    """Return the output of a stream, and the median time of a tick in ms."""
    outputs, times = [], []
    with engine.open(Control.of({"prompt": PROMPT, **control})) as stream:
        for number, picture in enumerate(clip):
            frame = Frame(image=picture, pts=number, time_base=Fraction(1, 24), seq=number)
            assert stream.push(frame)
            start = time.perf_counter()
            engine.tick()
            outputs += stream.pull()
            times.append(1e3 * (time.perf_counter() - start))
        outputs += stream.flush()
    return [output.image for output in outputs], statistics.median(times[_SKIPPED:])


def decibels(one: Sequence[Picture], two: Sequence[Picture]) -> float:
    """Return the PSNR of two videos; 99 if they are equal."""
    square = float(np.mean((np.stack(one).astype(float) - np.stack(two)) ** 2))
    return 99.0 if square == 0 else 10 * float(np.log10(255**2 / square))


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Return the figures of all clips."""
    engine = load_engine("mini-image", backend="eager", device=options.device, width=options.side, height=options.side)
    assert isinstance(engine, ImageEngine)
    runs: list[dict[str, object]] = []
    per_line = 0
    made = clips(options.side, options.frames)
    for name in options.clips.split(","):
        clip = made[name]
        motions = [Motion.between(a, b) for a, b in zip(clip[_SKIPPED:-1], clip[_SKIPPED + 1 :], strict=True)]

        def error(pictures: Sequence[Picture], motions: Sequence[Motion] = motions) -> float:
            pairs = zip(motions, pictures[_SKIPPED:-1], pictures[_SKIPPED + 1 :], strict=True)
            return round(statistics.mean(m.error(a, b) for m, a, b in pairs), 3)

        for lock in (True, False):
            without: list[Picture] = []
            for variant, control in VARIANTS.items():
                chosen = {"steps": options.steps, "strength": options.strength, "seed_lock": lock, **control}
                outputs, tick_ms = redrawn(engine, clip, chosen)
                without = without or outputs
                bank = bank_of(engine.core.runtime)
                per_line = per_line if bank is None else bank.bytes_per_line
                runs.append(
                    {
                        "clip": name,
                        "seed_lock": lock,
                        "bank": variant,
                        "warp_error": error(outputs),
                        "input_warp_error": error(clip),
                        "db_from_off": round(decibels(outputs, without), 2),
                        "tick_ms": round(tick_ms, 2),
                    }
                )
    return {
        "side_px": options.side,
        "steps": options.steps,
        "strength": options.strength,
        "frames": options.frames,
        "threads": torch.get_num_threads(),
        "bank_kib_per_line": round(per_line / 1024, 1),
        "runs": runs,
    }


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = bench_parser("feature_bank", __doc__)
    parser.add_argument("--side", type=int, default=192, help="width and height in pixels")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--frames", type=int, default=28, help="of each clip")
    parser.add_argument("--clips", default="camera,still,pan,zoom", help="of camera, still, pan and zoom")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    print_runs(measure(options), one_line=options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
