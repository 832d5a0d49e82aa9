"""Owns the memory that the streams of an image engine reuse from: feature lines, and which stream has which of them.

Made when the first stream asks for it. Independent of decisions and batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cache.features.lines import FeatureLines
from pipelines.image.model import Condition, WindowNetworks

from .codec import HeldPictures


class ReuseMemory:
    """Feature lines for pictures of one size. `lines` is None until the first `acquire`.

    example: makes the arguments of a denoiser's call with one row. changed: called after the lines have moved to other
    memory, whereby all that they held is lost. factor: pixels per latent.
    """

    def __init__(
        self,
        networks: WindowNetworks,
        example: Callable[[], tuple[torch.Tensor, torch.Tensor, Condition]],
        changed: Callable[[], None],
        *,
        factor: int,
    ) -> None:
        self.networks, self._example, self._changed, self._factor = networks, example, changed, factor
        self.lines: FeatureLines | None = None
        self.held: HeldPictures | None = None
        self._held: dict[int, int] = {}  # number of lines by the first of them

    @property
    def in_use(self) -> bool:
        """Whether any stream has lines."""
        return bool(self._held)

    def acquire(self, count: int) -> int:
        """Take `count` lines that follow each other and return the first. Raises torch's OutOfMemoryError."""
        first = 0
        for start, length in sorted(self._held.items()):
            if start - first >= count:
                break
            first = start + length
        if self.lines is None or first + count > self.lines.count:
            self._grow(first + count)
        self._held[first] = count
        return first

    def release(self, first: int) -> None:
        """Return the lines that `acquire` gave."""
        del self._held[first]

    def _grow(self, count: int) -> None:
        latents, timestep, condition = self._example()
        x0, features = self.networks.whole(latents, timestep, condition)
        self.lines = self.held = None
        self.lines = FeatureLines(count, latents.shape[2], latents.shape[3], features, x0)
        channels, height, width = latents.shape[1:]
        self.held = HeldPictures(count, (channels, height, width), self._factor, x0)
        self._changed()
