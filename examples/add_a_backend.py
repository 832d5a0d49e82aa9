"""A backend in one file and one row: it times every call of the denoiser.

`python examples/add_a_backend.py` runs the bundled models with it. To ship it (`--backend timed`), move the class to a
file in pipelines/backends/ and add the row to BACKENDS in pipelines/backends/table.py; nothing else changes.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from pipelines.backends.base import Backend
from pipelines.backends.table import BACKENDS, backend_table
from pipelines.image.model import ImageNetworks, ImageRuntime
from pipelines.image.runtime import plain_runtime as plain_image_runtime
from pipelines.load import load_engine
from pipelines.video.model import VideoNetworks, VideoRuntime
from pipelines.video.runtime import plain_runtime as plain_video_runtime


@dataclass(frozen=True, kw_only=True)
class TimedBackend(Backend):
    """Runs the networks unchanged and times the denoiser. seconds: of each call."""

    name: str = "timed"
    purpose: str = "like eager, but times the denoiser"
    seconds: list[float] = field(default_factory=list)

    def image(self, networks: ImageNetworks) -> ImageRuntime:
        """Any other denoiser works too: the engine only requires the `Denoiser` contract."""
        runtime = plain_image_runtime(networks)
        return replace(runtime, backend=self.name, denoiser=self._timed(runtime.denoiser))

    def video(self, networks: VideoNetworks) -> VideoRuntime:
        """Likewise for `VideoDenoiser`."""
        runtime = plain_video_runtime(networks)
        return replace(runtime, backend=self.name, denoiser=self._timed(runtime.denoiser))

    def _timed(self, denoiser: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*arguments: Any) -> torch.Tensor:
            start = time.perf_counter()
            result = denoiser(*arguments)
            self.seconds.append(time.perf_counter() - start)
            return result

        return call


def main() -> None:
    """Generate one chunk of frames with each bundled model."""
    for model in ("mini-image", "mini-video"):
        timed = TimedBackend()  # the new row
        table = backend_table(*BACKENDS.values(), timed)
        engine = load_engine(model, backend="timed", backends=table, device="cpu", notice=lambda text: None)
        with engine.open() as stream:
            stream.generate(stream.info.frames_per_chunk)
            frames = stream.flush()
        engine.close()
        calls, mean_ms = len(timed.seconds), 1e3 * sum(timed.seconds) / len(timed.seconds)
        sys.stdout.write(f"{model}, {stream.info.backend}: {len(frames)} frames, {calls} calls of {mean_ms:.0f} ms\n")


if __name__ == "__main__":
    main()
