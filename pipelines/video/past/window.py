"""Owns the past of streams whose cache keeps what it has seen: the clean latents of the cached frames.

After a cut of the prompt they are passed again, chunk by chunk at timestep 0, with the new prompt. That is LongLive's
re-cache (2509.22622) in the block-causal order in which the frames were made. Which layers that takes: recache.py.
"""

from __future__ import annotations

import torch

from pipelines.video.recache import make_reading, recache_passes

from .base import PastParts, StreamPast, groups_of
from .clean_latents import CleanFrames, CleanLatents, StoredFrame


class WindowPast(StreamPast):
    """Frames that a policy has pooled or selected token by token cannot be passed again: a cut drops them."""

    def __init__(self, parts: PastParts) -> None:
        super().__init__(parts)
        cells = parts.policy.frame_cells.cells
        self._clean = CleanLatents(cells, parts.latent_shape, parts.nothing, device=parts.device, dtype=parts.dtype)
        self._recache = False
        self._reading = make_reading(parts.recaching, parts.device)

    def context(self) -> list[CleanFrames]:
        if not self._recache:
            return []
        self._recache = False
        frames = [frame for frame in self._whole_frames() if frame in self._clean.frames]
        groups = groups_of(frames, self._parts.chunk_frames)
        again = [self._clean.take(group) for group in groups]
        recaching, rows = self._parts.recaching, self._parts.stream_rows
        if recaching is not None:
            kept = [rows.keep(group) for group in groups]
            passes = recache_passes(recaching, kept, self._reading)
            again = [clean._replace(recache=part) for clean, part in zip(again, passes, strict=True)]
        rows.reset()
        self._clean.rename(frames)
        return again

    def finished(self, clean: CleanFrames) -> None:
        chunk = [span.frame for span in self._parts.stream_rows.ledger().chunk][: clean.latents.shape[1]]
        self._clean.put(chunk, clean, cached=self._whole_frames())

    def decoded(self, frames: torch.Tensor) -> None:
        """Nothing to do: latents are enough."""

    def new_text(self) -> None:
        self._recache = True

    def restart(self) -> None:
        super().restart()
        self._clean.clear()
        self._recache = False

    def _whole_frames(self) -> list[int]:
        """Frames that the cache holds whole, and keeps when the next chunk begins."""
        return [s.frame for s in self._parts.stream_rows.ledger().spans if s.frame >= 0 and s.frames == 1 and s.kept]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return self._clean.tensors

    def host_state(self) -> tuple[dict[int, StoredFrame], bool]:
        return self._clean.cells, self._recache

    def restore(self, state: tuple[dict[int, StoredFrame], bool]) -> None:
        cells, self._recache = state
        self._clean.restore(cells)
