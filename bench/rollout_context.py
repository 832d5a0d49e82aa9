"""Owns what a rollout passes again before a chunk, for the two policies that ask for it.

As pipelines/video/past has it, for streams in step: `rebuild` encodes its context anew before every chunk, `dual`
begins a shot with an empty one. Knows no cache and no step.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cache.kv.policies import KVPolicy
from cache.kv.policies.dual import DualPolicy
from cache.kv.policies.windows import RebuildPolicy
from pipelines.video.model import VideoModel
from pipelines.video.past.rebuild import anchor_is_encoded, anchor_pictures

Shape = tuple[int, int, int, int]


class Again(NamedTuple):
    """Latents [N, C, n, h, w] to be passed at timestep 0 into an empty cache; first: index of their first frame."""

    latents: Tensor
    first: int


class Context(Protocol):
    """Told of what is finished; asked before each chunk."""

    def before_chunk(self, latents_done: int) -> Again | None:
        """What the cache, emptied, must see first; None: it stays as it is."""
        ...

    def finished(self, latents: Tensor) -> None:
        """A chunk's clean latents [N, C, F, h, w]."""
        ...

    def decoded(self, pictures: Tensor) -> None:
        """Its pictures uint8 [N, F, H, W, 3], valid during the call."""
        ...


class NoContext:
    """The cache remembers."""

    def before_chunk(self, latents_done: int) -> Again | None:
        return None

    def finished(self, latents: Tensor) -> None:
        """Not needed."""

    def decoded(self, pictures: Tensor) -> None:
        """Not needed."""


class EmptyShot(NoContext):
    """A first shot: a context of zeros, once (ShotStream)."""

    def __init__(self, frames: int, shape: Shape, device: torch.device) -> None:
        streams, channels, height, width = shape
        self._zeros = torch.zeros((streams, channels, frames, height, width), device=device)

    def before_chunk(self, latents_done: int) -> Again | None:
        return Again(self._zeros, 0) if latents_done == 0 and self._zeros.shape[2] else None


class Rebuilding:
    """The latest clean latents, before every chunk; the first of them encoded from an old picture (Krea)."""

    def __init__(self, model: VideoModel, policy: RebuildPolicy, shape: Shape, size: tuple[int, int]) -> None:
        self._policy = policy
        self._anchor = anchor_pictures(policy, model.codec.time_factor)
        self._codec, self._encoder = model.codec, model.codec.encoder(height=size[0], width=size[1], rows=shape[0])
        self._first: Tensor | None = None
        self._latest: list[Tensor] = []
        self._pictures: list[Tensor] = []

    def before_chunk(self, latents_done: int) -> Again | None:
        wanted = self._policy.context(latents_done)
        if not wanted:
            return None
        oldest = latents_done - len(self._latest)
        assert self._first is not None
        chosen = [self._first if frame == 0 else self._latest[frame - oldest] for frame in wanted]
        if anchor_is_encoded(self._policy, latents_done) and len(self._pictures) == self._anchor:
            chosen[0] = self._encoded(self._pictures[0]).to(chosen[0].dtype)
        return Again(torch.stack(chosen, 2), wanted[0])

    def _encoded(self, pictures: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] as the first frames of videos: [N, C, h, w]."""
        self._encoder.reset()
        frames = 1 + self._codec.encoder_delay_frames
        pixels = (pictures.permute(0, 3, 1, 2).float() / 255)[:, :, None].expand(-1, -1, frames, -1, -1)
        return self._encoder.encode(pixels)[:, :, 0]

    def finished(self, latents: Tensor) -> None:
        if self._first is None:
            self._first = latents[:, :, 0].clone()
        self._latest += [frame.clone() for frame in latents.unbind(2)]
        del self._latest[: -self._policy.context_frames]

    def decoded(self, pictures: Tensor) -> None:
        self._pictures += [picture.clone() for picture in pictures.unbind(1)]
        del self._pictures[: -self._anchor]


def choose_context(model: VideoModel, policy: KVPolicy, shape: Shape, size: tuple[int, int]) -> Context:
    """By the class of the policy. shape: (streams, C, h, w); size: (H, W) in pixels."""
    if isinstance(policy, RebuildPolicy):
        return Rebuilding(model, policy, shape, size)
    if isinstance(policy, DualPolicy):
        return EmptyShot(policy.context_of(0), shape, model.device)
    return NoContext()
