"""Owns CUDA graphs of single calls, with static inputs and results: a call runs, is captured later, then replayed.

Does not depend on what it captures. Graphs of one object share one memory pool, so they are replayed one after the
other on one CUDA stream; calls that overlap in time belong to different objects.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    result: torch.Tensor
    kept: object
    """What the graph reads and nobody else may free."""


class CapturedCalls:
    """`Calls` on a CUDA device. warm_calls: how often a key runs as it is before it is captured. max_graphs: further
    keys run without one, as each holds memory.
    """

    def __init__(self, device: torch.device, *, warm_calls: int, max_graphs: int = 64) -> None:
        assert warm_calls >= 1, warm_calls
        self._device, self._warm_calls, self._max_graphs = device, warm_calls, max_graphs
        self._inputs: dict[Hashable, tuple[torch.Tensor, ...]] = {}
        self._warm: dict[Hashable, int] = {}
        self._captured: dict[Hashable, _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle()

    @property
    def graphs(self) -> int:
        """How many were captured."""
        return len(self._captured)

    def __call__(
        self, key: Hashable | None, function: Callable[..., torch.Tensor], *inputs: torch.Tensor, kept: object = None
    ) -> torch.Tensor:
        """See `Calls`. Inputs are copied to addresses that stay."""
        if key is None:
            return function(*inputs)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in inputs)
        own = self._inputs.get(shapes)
        if own is None:
            with torch.inference_mode(False):
                own = self._inputs[shapes] = tuple(torch.empty_like(tensor, device=self._device) for tensor in inputs)
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        whole = (key, shapes)
        captured = self._captured.get(whole)
        if captured is None:
            seen = self._warm[whole] = self._warm.get(whole, 0) + 1
            result = function(*own)
            if seen < self._warm_calls or len(self._captured) >= self._max_graphs:
                return result
            captured = self._captured[whole] = self._capture(function, own, result, kept)
            return captured.result
        captured.graph.replay()
        return captured.result

    def invalidate(self) -> None:
        """Drop all graphs; they are captured again when they are due."""
        torch.cuda.synchronize(self._device)
        self._captured.clear()
        self._warm.clear()

    def _capture(
        self,
        function: Callable[..., torch.Tensor],
        inputs: tuple[torch.Tensor, ...],
        example: torch.Tensor,
        kept: object,
    ) -> _Captured:
        """The last warm call's result is returned with the graph: recording runs nothing."""
        with torch.inference_mode(False):
            result = torch.empty_like(example)
        result.copy_(example)

        def body() -> None:
            result.copy_(function(*inputs))

        return _Captured(record(body, self._device, self._pool, errors="thread_local"), result, kept)


def record(
    body: Callable[[], None], device: torch.device, pool: Any, *, errors: str = "global"
) -> torch.cuda.CUDAGraph:
    """A graph of what `body` does; it is recorded, not run.

    pool: of torch.cuda.graph_pool_handle. errors: PyTorch's capture_error_mode: whose forbidden calls make
    the recording fail, those of any thread ("global") or of this one ("thread_local").
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode=errors):
        body()
    return graph
