"""Owns one tick's passes of the transformer: the requests of all streams, in as few batches as their shapes allow.

Independent of what a pass is for and what its result is used for. Does not synchronise with the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cache.kv.cache import KVCache
from pipelines.conditioning.base import LATENT_BIAS, Conditioner
from pipelines.conditioning.frames import FrameConditions
from pipelines.conditioning.stream import all_inputs

from .flow import guided
from .model import VideoCondition, VideoDenoiser
from .recache import RecachePass
from .wan.text_cache import TextKVCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PassRequest:
    """One pass that a stream requests in this tick.

    latents: [C, F, h, w]. timesteps: one for each of the F frames. conditions: of conditioners, for each frame.
    kv_rows, text_rows: the row of the prompt and, if the stream has one, that of the negative prompt. view_frames: how
    many of the first frames of the cache's current chunk the pass covers; None: all. scale: guidance scale, used with
    two rows. recache: for frames that are passed again, what they keep; such a pass shares no batch.
    """

    latents: torch.Tensor
    timesteps: tuple[float, ...]
    conditions: FrameConditions
    kv_rows: tuple[int, ...]
    text_rows: tuple[int, ...]
    view_frames: int | None = None
    scale: float = 1.0
    recache: RecachePass | None = None

    def __post_init__(self) -> None:
        assert len(self.timesteps) == self.latents.shape[1], (self.timesteps, self.latents.shape)
        assert len(self.kv_rows) == len(self.text_rows), (self.kv_rows, self.text_rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One row of a batch: one branch of a request (0: the prompt, 1: the negative prompt)."""

    request: int
    branch: int
    kv_row: int
    text_row: int


class PassRunner:
    """Runs passes for one engine."""

    def __init__(
        self,
        denoiser: VideoDenoiser,
        cache: KVCache,
        texts: TextKVCache,
        *,
        device: torch.device,
        conditioners: Sequence[Conditioner],
    ) -> None:
        self._denoiser, self._cache, self._texts, self._device = denoiser, cache, texts, device
        self._conditioners = conditioners

    def run(self, requests: Sequence[PassRequest]) -> list[torch.Tensor]:
        """Return the velocity [C, F, h, w] of each request, with guidance applied."""
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
        """Group entries into batches: equal frames and equal ranges of the cache, in order of cache rows."""
        by_shape: dict[tuple[int, int | None, int], dict[int, _Entry]] = {}
        for number, request in enumerate(requests):
            alone = -1 if request.recache is None else number
            shape = (request.latents.shape[1], request.view_frames, alone)
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
        timesteps = to_device([requests[entry.request].timesteps for entry in group], self._device)
        conditions = [requests[entry.request].conditions for entry in group]
        branches = [entry.branch for entry in group]
        rows = PassRows(conditions, branches, self._conditioners, latents, timesteps)
        inputs = all_inputs(self._conditioners, rows)
        seen, bias = latents, inputs.pop(LATENT_BIAS, None)
        if bias is not None:
            seen = latents + bias.to(latents.dtype).transpose(1, 2)
        recache = first.recache
        refresh = None if recache is None else recache.refresh
        view = self._cache.view([entry.kv_row for entry in group], first.view_frames, refresh=refresh)
        condition = VideoCondition(text=self._texts.view([entry.text_row for entry in group]), inputs=inputs)
        velocity = self._denoiser(seen, timesteps, condition, view).to(latents.dtype)
        if recache is not None and recache.reading is not None:
            recache.reading.start()
        return velocity


class PassRows:
    """One batch as a `pipelines.conditioning.base.PassView`."""

    def __init__(
        self,
        conditions: Sequence[FrameConditions],
        branches: Sequence[int],
        conditioners: Sequence[Conditioner],
        latents: torch.Tensor,
        timesteps: torch.Tensor,
    ) -> None:
        """conditions, branches: one for each row of the batch; branch 1 is the negative prompt."""
        self._conditions, self._branches = conditions, branches
        self._branched = frozenset(name for conditioner in conditioners for name in conditioner.branched)
        self.latents, self.timesteps = latents, timesteps

    def field(self, name: str) -> torch.Tensor:
        """See `PassView`."""
        fields = [conditions.fields[name] for conditions in self._conditions]
        if name in self._branched:
            fields = [field[:, branch] for field, branch in zip(fields, self._branches, strict=True)]
        return torch.stack(fields)

    def columns(self, conditioner: str) -> torch.Tensor:
        """See `PassView`."""
        return to_device([conditions.columns[conditioner] for conditions in self._conditions], self.latents.device)


def to_device(numbers: Sequence[Sequence[object]], device: torch.device) -> torch.Tensor:
    """Return the numbers as float32 on the device, without synchronising."""
    host = torch.tensor(numbers, dtype=torch.float32)
    if device.type == "cuda":
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
