"""Engines for a real worker process: one with a set speed that fails on request, and one that runs out of memory.

`python -m tests.fakes.live_engines ENGINE ARGUMENTS...` is `zoetrope live ARGUMENTS...` with such an engine in its
worker: "paced:0.125" (seconds for each row of a tick), or "hungry:4" (a real image engine with memory for 4 slots).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import app.worker.link
from app.__main__ import main
from app.worker.engine import WorkerOptions
from app.worker.process import run_worker
from pipelines.core.contracts import Engine
from pipelines.core.errors import StreamError
from pipelines.identity import IdentityEngine

RAISES = "please fail"
"""A prompt that makes its stream fail in a tick."""


class PacedEngine(IdentityEngine):
    """The identity engine, slowed to `row_s` seconds for each row of a tick, like a model on a busy device."""

    def __init__(self, row_s: float, *, width: int, height: int) -> None:
        super().__init__(width=width, height=height, latency_ticks=1)
        self._row_s = row_s

    def tick(self) -> None:
        """Advance every frame, in the configured time. Raises StreamError for a stream whose prompt contains RAISES."""
        for stream in self._streams:
            if any(RAISES in part.text for part in stream.controls.prompt):
                raise StreamError("The stream failed: it was requested to.", "Change the prompt.", stream=stream)
        if self._row_s:
            time.sleep(self._row_s * sum(stream.slots for stream in self._streams) / (self.latency_ticks + 1))
        super().tick()


_HUNGRY_STEP_S = 0.06


def open_paced(row_s: float, options: WorkerOptions, notice: Callable[[str], None]) -> tuple[Engine, int]:
    """For `run_worker`: a PacedEngine of the options' size."""
    return PacedEngine(row_s, width=options.engine.width, height=options.engine.height), 1


def open_hungry(maximum: float, options: WorkerOptions, notice: Callable[[str], None]) -> tuple[Engine, int]:
    """For `run_worker`: a real image engine over arithmetic, with torch.OutOfMemoryError for more than `maximum` slots.

    A step takes longer than the period of prompt-only frames, so that streams fill their depth.
    """
    import torch

    from pipelines.image.engine import ImageEngine
    from tests.fakes.image_model import ArithmeticDenoiser, cheap_model

    class Hungry(ArithmeticDenoiser):
        def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, condition: object) -> torch.Tensor:
            self.calls.clear()
            time.sleep(_HUNGRY_STEP_S)
            if len(latents) > maximum:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return super().__call__(latents, timestep, condition)  # type: ignore[arg-type]

    torch.set_num_threads(1)
    return ImageEngine(cheap_model(denoiser=Hungry())), 1


OPENERS = {"paced": open_paced, "hungry": open_hungry}


def live_with(engine: str, arguments: list[str]) -> int:
    """Run `zoetrope live` with that engine."""
    kind, _, number = engine.partition(":")
    opens = partial(OPENERS[kind], float(number))
    app.worker.link.run_worker = partial(run_worker, opens=opens)  # type: ignore[assignment]  # pickled by name
    return main(["live", *arguments])


if __name__ == "__main__":
    from tests.fakes import live_engines  # by its module name, which the worker can import

    sys.exit(live_engines.live_with(sys.argv[1], sys.argv[2:]))
