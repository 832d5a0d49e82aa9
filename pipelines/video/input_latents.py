"""Owns how input frames become latents: bytes to pixels, one stream's row of the encoder, the picture of a video.

Independent of noise and steps.
"""

from __future__ import annotations

import numpy as np
import torch

from .chunks import FullChunk
from .state import VideoCore


class InputLatents:
    """Encodes the input of one stream, in its row of the encoder.

    The encoder is causal and carries state. After a gap it is reset, and the first frame, repeated, stands in for the
    missing past. fresh: the row's state does not belong to the frames directly before.
    """

    def __init__(self, core: VideoCore, index: int) -> None:
        self._core, self._index = core, index
        self.fresh = True

    def mark_gap(self) -> None:
        """Note that the next input does not follow the frames that were encoded last."""
        self.fresh = True

    def encode(self, content: FullChunk, *, first: bool) -> torch.Tensor:
        """Return latents [C, n, h, w] of a chunk's input frames. first: the chunk begins the stream."""
        encoder, rows = self._core.encoder, [self._index]
        pixels = self._pixels(content)
        if self.fresh:
            encoder.reset(self._index)
            if not first:
                encoder.encode(pixels[:, :, :1], rows)
        self.fresh = False
        return encoder.encode(pixels, rows)[0]

    def picture(self, content: FullChunk) -> torch.Tensor:
        """Return latents [C, 1, h, w] of the picture that begins a video."""
        return self._core.encode_pictures(self._pixels(content)[:, :, 0])

    def _pixels(self, content: FullChunk) -> torch.Tensor:
        """Return pixels [1, 3, F, H, W] float32 in [0, 1] on the device; uint8 is transferred, without waiting."""
        device = self._core.model.device
        images = torch.from_numpy(np.stack([frame.image for frame in content.frames if frame is not None]))
        if device.type == "cuda":
            images = images.pin_memory()
        pixels = images.to(device, non_blocking=True).permute(3, 0, 1, 2)[None]
        return pixels.to(torch.float32) / 255
