"""Owns one tick's passes of the transformer: requests of all streams, in as few batches as their shapes allow.

Knows latents, timesteps and rows; not what a pass is for, nor what becomes of its result. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cache.kv.cache import KVCache

from .flow import guided
from .model import VideoCondition, VideoDenoiser
from .wan.actions import Action
from .wan.text_cache import TextKVCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassRequest:
    """One pass that a stream wants in this tick.

    latents: [C, F, h, w]. timesteps, actions: one for each of the F frames. kv_rows, text_rows: the row of the prompt,
    and where the stream has one that of the negative prompt. view_frames: the first frames of the chunk in the cache
    that the pass consists of; None: all. scale: of guidance, where there are two rows.
    """

    latents: torch.Tensor
    timesteps: tuple[float, ...]
    actions: tuple[Action, ...]
    kv_rows: tuple[int, ...]
    text_rows: tuple[int, ...]
    view_frames: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        assert len(self.timesteps) == self.latents.shape[1], (self.timesteps, self.latents.shape)
        assert len(self.actions) == self.latents.shape[1], (self.actions, self.latents.shape)
        assert len(self.kv_rows) == len(self.text_rows), (self.kv_rows, self.text_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One entry of a batch: a request's branch (0 the prompt, 1 the negative prompt)."""

    request: int
    branch: int
    kv_row: int
    text_row: int


class PassRunner:
    """Runs passes for one engine. takes_actions: the model does; the others' requests have none but NO_ACTION."""

    def __init__(
        self, denoiser: VideoDenoiser, cache: KVCache, texts: TextKVCache, *, device: torch.device, takes_actions: bool
    ) -> None:
        self._denoiser, self._cache, self._texts, self._device = denoiser, cache, texts, device
        self._takes_actions = takes_actions

    def run(self, requests: Sequence[PassRequest]) -> list[torch.Tensor]:
        """The velocity [C, F, h, w] of each request, guided."""
        branches: dict[tuple[int, int], torch.Tensor] = {}
        groups = self._groups(requests)
        for group in groups:
            velocity = self._pass(requests, group)
            velocity = velocity if len(groups) == 1 else velocity.clone()
            for entry, part in zip(group, velocity, strict=True):
                branches[entry.request, entry.branch] = part
        return [self._joined(request, i, branches) for i, request in enumerate(requests)]

    def _joined(self, request: PassRequest, number: int, branches: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
        positive = branches[number, 0]
        if len(request.kv_rows) == 1:
            return positive
        return guided(positive, branches[number, 1], request.scale)

    def _groups(self, requests: Sequence[PassRequest]) -> list[list[_Entry]]:
        """Entries that one batch takes: equal frames, equal ranges of the cache; in the order of their rows."""
        by_shape: dict[tuple[int, int | None], dict[int, _Entry]] = {}
        for number, request in enumerate(requests):
            shape = (request.latents.shape[1], request.view_frames)
            for branch, (kv_row, text_row) in enumerate(zip(request.kv_rows, request.text_rows, strict=True)):
                entry = _Entry(request=number, branch=branch, kv_row=kv_row, text_row=text_row)
                by_shape.setdefault(shape, {})[kv_row] = entry
        return [
            [entries[row] for row in rows]
            for entries in by_shape.values()
            for rows in self._cache.groups(sorted(entries))
        ]

    def _pass(self, requests: Sequence[PassRequest], group: Sequence[_Entry]) -> torch.Tensor:
        first = requests[group[0].request]
        latents = torch.stack([requests[entry.request].latents for entry in group])
        timesteps = self._to_device([requests[entry.request].timesteps for entry in group])
        inputs = {}
        if self._takes_actions:
            inputs["actions"] = self._to_device([requests[entry.request].actions for entry in group])
        view = self._cache.view([entry.kv_row for entry in group], first.view_frames)
        condition = VideoCondition(text=self._texts.view([entry.text_row for entry in group]), inputs=inputs)
        return self._denoiser(latents, timesteps, condition, view).to(latents.dtype)

    def _to_device(self, numbers: Sequence[Sequence[object]]) -> torch.Tensor:
        """float32 on the device, without waiting."""
        host = torch.tensor(numbers, dtype=torch.float32)
        if self._device.type == "cuda":
            host = host.pin_memory()
        return host.to(self._device, non_blocking=True)
