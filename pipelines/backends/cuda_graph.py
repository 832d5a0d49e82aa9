"""Owns execution by CUDA graphs with static buffers: one graph for each key (part and shape of the batch).

Knows nothing of what it captures. The first call of a key runs eagerly (and warms libraries up), the second captures
and replays, later ones replay: work is never done twice. Graphs share one memory pool: they are replayed one after
the other on one CUDA stream and leave their results in buffers outside the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from pipelines.core.errors import ModelError


class CudaGraphBackend:
    """Raises ModelError where there is no CUDA device."""

    name = "cuda-graph"

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ModelError(
                f"The backend cuda-graph cannot run on the device {device}.", "Choose a CUDA device or backend eager."
            )
        self._device = device
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def run(self, key: Hashable, part: Callable[[], None]) -> None:
        """Do what `part` does, once."""
        if key not in self._seen:
            part()
            self._seen.add(key)
            return
        graph = self._graphs.get(key)
        if graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(self._device), torch.cuda.graph(graph, pool=self._pool):
                part()
            self._graphs[key] = graph
        graph.replay()

    def invalidate(self) -> None:
        """Drop all graphs; they are captured again as they are needed."""
        torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._seen.clear()
