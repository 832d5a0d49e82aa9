"""Owns the CUDA graph executor: one graph per key, for parts with static buffers and for calls with inputs.

Independent of what is captured. The first run of a part is eager (and warms up libraries), the second captures and
replays, later ones replay: no work is done twice. The graphs of parts share one memory pool: they are replayed one
after the other on one CUDA stream and write their results to buffers outside the pool. Each `calls()` has its own
pool. What overlaps in time has an executor for each CUDA stream.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from pipelines.core.errors import ModelError

from .captured import CapturedCalls, record


class GraphExecutor:
    """Captures parts and calls in CUDA graphs. Raises ModelError for a device that is not a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ModelError(
                f"CUDA graphs cannot run on the device {device}.", "Choose a CUDA device or backend eager."
            )
        self._device = device
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._calls: list[CapturedCalls] = []

    @property
    def graphs(self) -> int:
        """Number of captured CUDA graphs."""
        return len(self._graphs) + sum(calls.graphs for calls in self._calls)

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """See `Executor`. Run `part` once: eagerly at first, then captured."""
        if key not in self._seen:
            part()
            self._seen.add(key)
            return
        graph = self._graphs.get(key)
        if graph is None:
            # Another thread may be loading compiled parts, which allocates memory.
            graph = self._graphs[key] = record(part, self._device, self._pool, errors="thread_local")
        graph.replay()

    def calls(self, *, warm_calls: int) -> CapturedCalls:
        """See `Executor`. Return captured calls with their own input buffers and memory pool."""
        calls = CapturedCalls(self._device, warm_calls=warm_calls)
        self._calls.append(calls)
        return calls

    def invalidate(self) -> None:
        """Drop all graphs; they are captured again when needed."""
        torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._seen.clear()
        for calls in self._calls:
            calls.invalidate()
