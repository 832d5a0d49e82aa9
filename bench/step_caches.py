"""What caching across steps saves and costs in renders of the bundled image model, against its uncached self.

``python -m bench.step_caches --json`` renders pictures from prompts and photographs with each cache of
pipelines/image/step_caches.py, prints how many times faster the UNet and the whole render are (by the clock, and in CPU
seconds, which other programs disturb less), and the PSNR. Renders of fewer steps without a cache stand beside them:
what a cache has to beat. ``--calibrate`` measures the step profile of the bundled model and writes it beside its
weights.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch

from bench.command import bench_parser, print_runs
from cache.features.steps.contract import Action
from pipelines.core.controls import Control
from pipelines.core.tick_log import TickLog, TimingRecord
from pipelines.core.types import Frame
from pipelines.files.layout import find_weights, read_layout
from pipelines.image.engine import ImageEngine
from pipelines.image.loading.load import LoadOptions, load_image_model
from pipelines.image.model import ImageModel
from pipelines.image.step_caches import STEP_CACHES, StepCache
from pipelines.image.step_calibration import measured_profile
from pipelines.image.step_profile import PROFILE_FILE, weights_digest

MODEL = "mini-image"
FOLDER = Path("assets/models/mini-image")
PHOTOS = Path("assets/samples/photos")
PROMPTS = (
    "a robot on the beach, pencil sketch",
    "a cat in the forest at sunset",
    "a castle in the mountains at night",
    "a dragon in the city, watercolour",
    "a snowman in the snow",
    "a wizard in space, neon lines",
    "a bear in the desert, pixel art",
    "an astronaut in a studio",
)
CALIBRATION = (
    "a unicorn in the forest",
    "a dinosaur in the desert at sunset",
    "a ghost in the city at night",
    "a mermaid under the sea, flat poster",
    "a pumpkin in a studio",
    "a car in the city, pixel art",
    "an alien on the beach, neon lines",
    "a camel in the mountains, watercolour",
)
"""Prompts of the profile: others than those that are measured."""

Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """pictures: in order. seconds: of the whole render. cpu_s: of all its threads. unet_s: of its denoising. computed:
    share of the slots' steps that ran the whole network, shallow: its upper levels alone."""

    pictures: list[Picture]
    seconds: float
    cpu_s: float
    unet_s: float
    computed: float
    shallow: float


def inputs(kind: str, count: int, side_px: tuple[int, int]) -> list[Frame | None]:
    """Photographs cut to a square, or Nones for renders from the prompt alone."""
    if kind == "prompt":
        return [None] * count
    frames: list[Frame | None] = []
    for seq, file in enumerate(sorted(PHOTOS.glob("*.jpg"))[:count]):
        photo = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        side = min(photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        square = cv2.resize(photo[top : top + side, left : left + side], side_px, interpolation=cv2.INTER_AREA)
        frames.append(Frame(image=np.asarray(square, np.uint8), pts=seq, time_base=Fraction(1, 24), seq=seq))
    return frames


def render(
    model: ImageModel, control: Mapping[str, object], given: Sequence[Frame | None], cache: str | StepCache = ""
) -> Rendered:
    """Render one picture per input, each with a prompt of its own and another seed's noise."""
    log = TickLog()
    engine = ImageEngine(model, tick_log=log, step_cache=cache, max_slots=4)
    stream = engine.open(Control.of({**control, "seed_lock": False}))
    pictures: list[Picture] = []
    start, cpu_start = time.perf_counter(), time.process_time()
    for index, frame in enumerate(given):
        stream.apply(Control.of({"prompt": PROMPTS[index % len(PROMPTS)]}))
        while not (stream.generate() if frame is None else stream.push(frame)):
            engine.tick()
            pictures += [out.image for out in stream.pull()]
    pictures += [out.image for out in stream.flush()]
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    unet_s = sum(record.denoise_ms for record in log.records() if isinstance(record, TimingRecord)) / 1000
    counts = {} if engine.core.step_reuse is None else engine.core.step_reuse.planner.counts
    total = sum(counts.values()) or 1
    engine.close()
    return Rendered(
        pictures=pictures,
        seconds=seconds,
        cpu_s=cpu_s,
        unet_s=unet_s,
        computed=counts.get(Action.COMPUTE, total) / total,
        shallow=counts.get(Action.SHALLOW, 0) / total,
    )


def psnr_db(one: Picture, other: Picture) -> float:
    """Peak signal-to-noise ratio of two pictures; infinite where they are equal."""
    error = float(np.square(one.astype(np.float64) - other).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def compared(name: str, kind: str, plain: Rendered, cached: Rendered) -> dict[str, object]:
    """One line of the table."""
    levels = [psnr_db(a, b) for a, b in zip(plain.pictures, cached.pictures, strict=True)]
    return {
        "cache": name,
        "from": kind,
        "unet_times": round(plain.unet_s / cached.unet_s, 2),
        "render_times": round(plain.seconds / cached.seconds, 2),
        "cpu_times": round(plain.cpu_s / cached.cpu_s, 2),
        "psnr_db": round(float(np.mean(levels)), 1),
        "worst_db": round(min(levels), 1),
        "computed": round(cached.computed, 2),
        "shallow": round(cached.shallow, 2),
    }


def measure(options: argparse.Namespace, model: ImageModel) -> list[dict[str, object]]:
    """Return the lines of the table."""
    base = {"step_function": options.sampler, "steps": options.steps, "strength": options.strength}
    rows = []
    for kind in options.kinds:
        given = inputs(kind, options.pictures, model.size_px)
        render(model, {**base, "steps": 4}, given[:2])  # warms up
        plain = render(model, base, given)
        rows.append({**compared("none", kind, plain, plain), "seconds": round(plain.seconds / len(given), 2)})
        for share in (2, 3):
            steps = round(options.steps / share)
            fewer = render(model, {**base, "steps": steps}, given)
            rows.append(compared(f"none, {steps} steps", kind, plain, fewer))
        for name in options.caches:
            rows.append(compared(name, kind, plain, render(model, base, given, name)))
    return rows


def calibrate(model: ImageModel) -> None:
    """Write the step profile of the bundled model. A router that it had is kept."""
    digest = weights_digest(find_weights(read_layout(FOLDER).unet).files)
    made = "python -m bench.step_caches --calibrate"
    measured_profile(model, CALIBRATION, weights=digest, made=made).write(FOLDER / PROFILE_FILE)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = bench_parser("step_caches", __doc__)
    parser.add_argument("--sampler", default="ddim", choices=("ddim", "dpmpp"))
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--strength", type=float, default=0.8, help="of renders from photographs")
    parser.add_argument("--pictures", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", default=["prompt", "photo"], choices=("prompt", "photo"))
    parser.add_argument("--caches", nargs="+", default=list(STEP_CACHES), choices=list(STEP_CACHES), metavar="NAME")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibrate", action="store_true", help="measure and write the step profile, nothing else")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = load_image_model(MODEL, LoadOptions(device="cpu", dtype="float32"))
    if options.calibrate:
        calibrate(model)
        return
    figures = {"model": MODEL, "sampler": options.sampler, "steps": options.steps, "strength": options.strength}
    print_runs({**figures, "runs": measure(options, model)}, one_line=options.json)


if __name__ == "__main__":
    main()
