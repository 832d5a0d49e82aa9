"""Owns the capture of a training step in a CUDA graph, whatever the step does.

A step of these small networks is hundreds of kernels of microseconds each: launched one by one they leave the GPU idle.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

SYNCHRONISE_EVERY = 8
"""Replays between synchronisations with the device, so that a long queue does not overrun the time budget."""


class Replay:
    """A step without arguments, captured once and replayed; on a CPU it is simply called.

    The step must only use tensors that live as long as this object, draw random numbers from the device's default
    generator, and never synchronise with the device. The constructor runs it a few times for real.
    """

    def __init__(self, step: Callable[[], None], device: torch.device, warmups: int = 3) -> None:
        self._step = step
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(warmups):
                    step()
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                step()

    def __call__(self) -> None:
        """Run the step once."""
        if self._graph is None:
            self._step()
            return
        self._graph.replay()
        self._calls += 1
        if self._calls % SYNCHRONISE_EVERY == 0:
            torch.cuda.synchronize()
