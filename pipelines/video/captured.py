"""Owns CUDA graphs of single calls, with static inputs and results: a call runs, is captured later, then replayed.

Knows tensors and keys; nothing of what it captures. Graphs of one object share one memory pool, so they are replayed
one after the other on one CUDA stream; calls that overlap in time belong to different objects.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from pipelines.core.errors import ModelError

Call = Callable[..., torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class _Captured:
    graph: torch.cuda.CUDAGraph
    result: torch.Tensor
    kept: object
    """What the graph reads and nobody else may free."""


class CapturedCalls:
    """warm_calls: how often a key runs as it stands before it is captured (more than one chunk has passes, so that the
    phase in which a cache fills is not captured). max_graphs: further keys run without one, as each holds memory.
    Raises ModelError where there is no CUDA device.
    """

    def __init__(self, device: torch.device, *, warm_calls: int = 6, max_graphs: int = 64) -> None:
        if device.type != "cuda":
            raise ModelError(
                f"CUDA graphs cannot run on the device {device}.", "Choose a CUDA device or backend eager."
            )
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

    def __call__(self, key: Hashable, function: Call, *inputs: torch.Tensor, kept: object = None) -> torch.Tensor:
        """function(*inputs), which must not wait for the device and keeps no tensor of its own.

        Calls of equal keys read the same addresses but for their inputs, which are copied. The result is valid until
        the next call. kept: objects whose memory the function reads.
        """
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
        """Drop all graphs: what they read has changed its place (other weights). They are captured again when due."""
        torch.cuda.synchronize(self._device)
        self._captured.clear()
        self._warm.clear()

    def _capture(
        self, function: Call, inputs: tuple[torch.Tensor, ...], example: torch.Tensor, kept: object
    ) -> _Captured:
        """The last warm call's result is given back with the graph: recording runs nothing."""
        with torch.inference_mode(False):
            result = torch.empty_like(example)
        result.copy_(example)
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            result.copy_(function(*inputs))
        return _Captured(graph, result, kept)
