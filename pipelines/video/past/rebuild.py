"""Owns the past of streams that rebuild their cache before every chunk: the latest clean latents, and an anchor.

Krea realtime-video (2025): the context is an anchor and the latest frames, passed once at timestep 0. Once the stream's
true first frame has left the window, the anchor is an old output frame, as 8-bit RGB, encoded again as a first frame.
"""

from __future__ import annotations

import torch

from cache.kv.policies.windows import RebuildPolicy
from pipelines.conditioning.frames import FrameConditions
from pipelines.video.codecs.codec import frames_of

from .base import PastParts, StreamPast
from .clean_latents import CleanFrames, CleanLatents, StoredFrame


def anchor_is_encoded(policy: RebuildPolicy, frames: int) -> bool:
    """Whether, after `frames` finished latent frames, the context's first one must be encoded from an output frame.

    A causal codec's first latent has different statistics; once the true one has left the window, an old output frame
    replaces it, encoded as a stream's first frame: the oldest of the last `anchor_pictures`.
    """
    return frames > policy.context_frames and not policy.keep_first


def anchor_pictures(policy: RebuildPolicy, time_factor: int) -> int:
    """Length of the queue of decoded frames whose oldest is the anchor: the frames of a context that begins a stream.

    time_factor: frames of a latent frame after the first.
    """
    return frames_of(policy.context_frames, first=True, time_factor=time_factor)


class RebuildPast(StreamPast):
    """Latent frames and decoded frames since the last scene cut, as far back as the policy can need them."""

    def __init__(self, parts: PastParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.policy, RebuildPolicy), parts.policy
        self._policy = parts.policy
        cells = self._policy.context_frames + self._policy.chunk_frames + 1
        self._clean = CleanLatents(cells, parts.latent_shape, parts.nothing, device=parts.device, dtype=parts.dtype)
        size = (anchor_pictures(self._policy, parts.time_factor), *parts.size, 3)
        self._pixels = torch.zeros(size, dtype=torch.uint8, device=parts.device)
        self._frames = 0
        self._pictures = 0

    def context(self) -> list[CleanFrames]:
        self._parts.stream_rows.reset()
        if not self._frames:
            return []
        latents, conditions, _ = self._clean.take(self._policy.context(self._frames))
        if anchor_is_encoded(self._policy, self._frames) and self._pictures >= len(self._pixels):
            oldest = self._pictures % len(self._pixels)
            picture = self._pixels[oldest].permute(2, 0, 1).float() / 255
            latents[:, :1] = self._parts.encode(picture[None]).to(latents.dtype)
            others = conditions.select(range(1, latents.shape[1]))
            conditions = FrameConditions.joined([self._parts.nothing, others])
        return [CleanFrames(latents, conditions)]

    def finished(self, clean: CleanFrames) -> None:
        frames = list(range(self._frames, self._frames + clean.latents.shape[1]))
        self._frames = frames[-1] + 1
        needed = set(self._policy.context(self._frames)) | {0}
        kept = [frame for frame in frames if frame in needed] or frames[-1:]
        indices = [frame - frames[0] for frame in kept]
        chosen = CleanFrames(clean.latents[:, indices], clean.conditions.select(indices))
        self._clean.put(kept, chosen, cached=needed)

    def decoded(self, frames: torch.Tensor) -> None:
        for picture in frames[-len(self._pixels) :]:
            self._pixels[self._pictures % len(self._pixels)].copy_(picture)
            self._pictures += 1

    def new_text(self) -> None:
        """Nothing to do: the next rebuild uses the new prompt."""

    def flush(self) -> None:
        if self._frames:
            self._clean.rename([self._frames - 1])
            self._frames = 1
            self._pictures = 0

    def scene_cut(self) -> None:
        self._clean.clear()
        self._frames = self._pictures = 0

    def restart(self) -> None:
        super().restart()
        self.scene_cut()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return *self._clean.tensors, self._pixels

    def host_state(self) -> tuple[dict[int, StoredFrame], int, int]:
        return self._clean.cells, self._frames, self._pictures

    def restore(self, state: tuple[dict[int, StoredFrame], int, int]) -> None:
        cells, self._frames, self._pictures = state
        self._clean.restore(cells)
