"""Owns the contract of a stream's memory. Knows no prompt and no schedule of passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cache.kv.policies import KVPolicy
from pipelines.conditioning.frames import FrameConditions
from pipelines.video.stream_rows import StreamRows

from .clean_latents import CleanFrames

EncodePictures = Callable[[torch.Tensor], torch.Tensor]
"""Pictures [k, 3, H, W] in [0, 1] -> latents [C, k, h, w], each encoded alone as the first frame of a video."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastParts:
    """What a memory works with. chunk_frames: latent frames of a chunk. latent_shape: (C, h, w). size: (H, W) in px.
    nothing: what conditioners say of one frame that they say nothing of. time_factor: pictures of a latent frame after
    the first."""

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


class StreamPast(ABC):
    """Told of what is finished; asked, when a chunk is born, what to pass again before it."""

    def __init__(self, parts: PastParts) -> None:
        self._parts = parts

    @abstractmethod
    def context(self) -> list[CleanFrames]:
        """Frames to be passed at timestep 0, one pass each, before the next chunk, with the conditions of their births.

        Called once, when that is born. May reset the cache.
        """

    @abstractmethod
    def finished(self, clean: CleanFrames) -> None:
        """A chunk is done; the cache still has it as its chunk."""

    @abstractmethod
    def decoded(self, frames: torch.Tensor) -> None:
        """Its pictures [F, H, W, 3] uint8, valid during the call."""

    @abstractmethod
    def new_text(self) -> None:
        """The prompt changed by a cut: what stands in the cache was seen with the old one."""

    def flush(self) -> None:
        """Forget all but the sink and the last frame."""
        self._parts.stream_rows.flush()

    def scene_cut(self) -> None:
        """The next chunk begins another scene."""
        self._parts.stream_rows.scene_cut()

    def restart(self) -> None:
        """The stream begins anew."""
        self._parts.stream_rows.reset()

    @property
    def bytes(self) -> int:
        """Memory on the device."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    @abstractmethod
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The memory whose contents, with `facts`, are its state: always the same, in the same order."""

    @abstractmethod
    def facts(self) -> Any:
        """A copy of what it knows beside them, for `restore`."""

    @abstractmethod
    def restore(self, facts: Any) -> None:
        """The contents of `tensors` have been put back to when these were the facts."""


def groups_of(frames: Sequence[int], size: int) -> list[Sequence[int]]:
    """Consecutive groups of at most `size`; the first one takes the rest, so that the last ones are whole chunks."""
    rest = len(frames) % size
    heads = [frames[:rest]] if rest else []
    return [*heads, *(frames[i : i + size] for i in range(rest, len(frames), size))]
