"""Measures the host's part of an image tick: push, tick and pull at 512×512 while the device's part is left out.

`python -m bench.image_host --streams 1 8 --json`: CPU time of the thread, which other programs do not disturb.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Hashable

import numpy as np
import torch

from bench.command import bench_parser, print_runs
from bench.image_stream import describe_run, moving_frames
from pipelines.core.conditions import TextCondition
from pipelines.core.controls import Control
from pipelines.core.execution import Calls, call_eagerly
from pipelines.image.engine import ImageEngine
from pipelines.image.model import Condition, ImageModel, ImageRuntime, ScheduleConfig

_SIDE_PX = 512


class NothingRuns:
    """An executor that leaves every part out."""

    graphs = 0

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Do nothing."""

    def calls(self, *, warm_calls: int) -> Calls:
        """See `Executor`."""
        return call_eagerly

    def invalidate(self) -> None:
        """Do nothing."""


class NoNetworks:
    """Denoiser, codec and text encoder of SD-Turbo's shapes, of which only the last is called."""

    latent_channels, factor, margin = 4, 8, None

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
        raise AssertionError("nothing runs")

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Of the codec."""
        raise AssertionError("nothing runs")

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Of the codec."""
        raise AssertionError("nothing runs")


class OneText:
    """The same embeddings for every text."""

    def encode(self, text: str) -> TextCondition:
        """See `PromptEncoder`."""
        return TextCondition(embeds=torch.zeros(77, 1024))


def model() -> ImageModel:
    """Return a model that computes nothing."""
    networks, device = NoNetworks(), torch.device("cpu")
    schedule = ScheduleConfig(alphas_cumprod=np.linspace(0.999, 0.005, 1000, dtype=np.float64))
    return ImageModel(
        name="nothing",
        device=device,
        dtype=torch.float32,
        size_px=(_SIDE_PX, _SIDE_PX),
        runtime=ImageRuntime(backend="none", denoiser=networks, codec=networks, make_executor=NothingRuns),
        prompts=OneText(),
        schedule=schedule,
        defaults={},
        licence="none",
    )


def measure(streams: int, steps: int, ticks: int) -> dict[str, object]:
    """Return milliseconds of CPU time of one tick with a new picture for each stream."""
    engine = ImageEngine(model())
    control = {"steps": steps, "strength": 0.5, "guidance_mode": "self", "guidance_scale": 1.2}
    opened = [engine.open(Control.of(control)) for _ in range(streams)]
    pictures, times = moving_frames(32, _SIDE_PX, _SIDE_PX), []
    for tick in range(ticks + ticks // 10):
        start = time.thread_time()
        for number, stream in enumerate(opened):
            stream.push(pictures[(tick + number) % len(pictures)])
        engine.tick()
        for stream in opened:
            stream.pull()
        times.append(1e3 * (time.thread_time() - start))
    engine.close()
    timed = sorted(times[ticks // 10 :])
    figures = {"median_ms": statistics.median(timed), "p95_ms": timed[int(0.95 * len(timed))]}
    return {"streams": streams, "steps": steps, **{name: round(ms, 3) for name, ms in figures.items()}}


def main() -> int:
    parser = bench_parser("image_host", __doc__)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--ticks", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    runs = [measure(streams, options.steps, options.ticks) for streams in options.streams]
    figures = {**describe_run(model(), "image_host"), "runs": runs}
    print_runs(figures, one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
