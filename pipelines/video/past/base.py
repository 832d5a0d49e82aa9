"""Owns the contract of what a stream keeps beside its KV cache. Independent of prompts and chunk schedules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cache.kv.policies import KVPolicy
from pipelines.conditioning.frames import FrameConditions
from pipelines.video.recache import Recaching
from pipelines.video.stream_rows import StreamRows

from .clean_latents import CleanFrames

EncodePictures = Callable[[torch.Tensor], torch.Tensor]
"""Pictures [k, 3, H, W] in [0, 1] -> latents [C, k, h, w], each encoded alone as the first frame of a video."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastParts:
    """What a `StreamPast` is made from. chunk_frames: latent frames of a chunk. latent_shape: (C, h, w). size: (H, W)
    in pixels. nothing: conditions of one frame without any. time_factor: frames of a latent frame after the first.
    recaching: which layers are computed again after a cut; None: all."""

    stream_rows: StreamRows
    policy: KVPolicy
    chunk_frames: int
    latent_shape: tuple[int, int, int]
    size: tuple[int, int]
    time_factor: int
    dtype: torch.dtype
    device: torch.device
    encode: EncodePictures
    nothing: FrameConditions
    recaching: Recaching | None = None


class StreamPast(ABC):
    """Is notified of finished chunks, and returns, when a chunk begins, what to pass again before it."""

    def __init__(self, parts: PastParts) -> None:
        self._parts = parts

    @abstractmethod
    def context(self) -> list[CleanFrames]:
        """Return what to pass at timestep 0 before the next chunk, one pass per entry, with its original conditions.

        Called once, when that chunk begins. May reset the cache.
        """

    @abstractmethod
    def finished(self, clean: CleanFrames) -> None:
        """Take a finished chunk, while it is still the cache's current chunk."""

    @abstractmethod
    def decoded(self, frames: torch.Tensor) -> None:
        """Take a finished chunk's frames [F, H, W, 3] uint8, valid only during the call."""

    @abstractmethod
    def new_text(self) -> None:
        """React to a cut of the prompt: the cache was computed with the old one."""

    def flush(self) -> None:
        """Discard all but the sink and the last frame."""
        self._parts.stream_rows.flush()

    def scene_cut(self) -> None:
        """Make the next chunk begin a new scene."""
        self._parts.stream_rows.scene_cut()

    def restart(self) -> None:
        """Begin a new video."""
        self._parts.stream_rows.reset()

    @property
    def bytes(self) -> int:
        """Size of the device memory."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    @abstractmethod
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors whose contents, with `host_state`, are the whole state: always the same, in the same order."""

    @abstractmethod
    def host_state(self) -> Any:
        """Return a copy of the state on the host, for `restore`."""

    @abstractmethod
    def restore(self, state: Any) -> None:
        """Restore the state on the host; the caller has restored the contents of `tensors`."""


def groups_of(frames: Sequence[int], size: int) -> list[Sequence[int]]:
    """Split frames into consecutive groups of `size`; the first is shorter if the number does not divide evenly."""
    rest = len(frames) % size
    heads = [frames[:rest]] if rest else []
    return [*heads, *(frames[i : i + size] for i in range(rest, len(frames), size))]
