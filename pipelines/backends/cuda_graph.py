"""Owns the executor of CUDA graphs: one graph for each key, for parts with static buffers and for calls with inputs.

Does not depend on what it captures. The first run of a part is eager (and warms libraries up), the second captures and
replays, later ones replay: work is never done twice. The graphs of parts share one memory pool: they are replayed one
after the other on one CUDA stream and leave their results in buffers outside of the pool. Calls have a pool for each
`calls()`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from pipelines.core.errors import ModelError

from .captured import CapturedCalls, record


class GraphExecutor:
    """Raises ModelError where there is no CUDA device."""

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
        """How many CUDA graphs have been captured."""
        return len(self._graphs) + sum(calls.graphs for calls in self._calls)

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Do what `part` does, once."""
        if key not in self._seen:
            part()
            self._seen.add(key)
            return
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = record(part, self._device, self._pool)
        graph.replay()

    def calls(self, *, warm_calls: int) -> CapturedCalls:
        """Captured calls with inputs of their own."""
        calls = CapturedCalls(self._device, warm_calls=warm_calls)
        self._calls.append(calls)
        return calls

    def invalidate(self) -> None:
        """Drop all graphs; they are captured again as they are needed."""
        torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._seen.clear()
        for calls in self._calls:
            calls.invalidate()
