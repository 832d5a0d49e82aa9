"""Owns the way of input frames into a chunk: bytes to pixels, the streaming encoder of one stream, the first picture.

Knows the codec and one row of it; no noise and no steps.
"""

from __future__ import annotations

import numpy as np
import torch

from .chunks import FullChunk
from .state import VideoCore


class InputLatents:
    """Encodes the input of one stream, in its row.

    An encoder looks back. After a gap it begins anew: the first picture, once more, stands for the past it lacks.
    fresh: the row has seen nothing of what came directly before.
    """

    def __init__(self, core: VideoCore, index: int) -> None:
        self._core, self._index = core, index
        self.fresh = True

    def gap(self) -> None:
        """What comes next does not follow what was encoded last."""
        self.fresh = True

    def encode(self, content: FullChunk, *, first: bool) -> torch.Tensor:
        """Latents [C, n, h, w] of a chunk's input frames. first: the chunk begins the stream."""
        encoder, rows = self._core.encoder, [self._index]
        pixels = self._pixels(content)
        if self.fresh:
            encoder.reset(self._index)
            if not first:
                encoder.encode(pixels[:, :, :1], rows)
        self.fresh = False
        return encoder.encode(pixels, rows)[0]

    def picture(self, content: FullChunk) -> torch.Tensor:
        """Latents [C, 1, h, w] of the picture that begins a video."""
        return self._core.encode_pictures(self._pixels(content)[:, :, 0])

    def _pixels(self, content: FullChunk) -> torch.Tensor:
        """[1, 3, F, H, W] float32 in [0, 1] on the device; the bytes travel, and nothing waits for them."""
        device = self._core.model.device
        images = torch.from_numpy(np.stack([frame.image for frame in content.frames if frame is not None]))
        if device.type == "cuda":
            images = images.pin_memory()
        pixels = images.to(device, non_blocking=True).permute(3, 0, 1, 2)[None]
        return pixels.to(torch.float32) / 255
