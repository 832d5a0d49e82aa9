"""Owns how a streaming video decoder is executed: as written, compiled, in a CUDA graph, or both; to bytes of frames.

The table of kinds is that of `backends`. Knows decoders and tensors; no transformer, chunk plan or stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipelines.video.backends import BackendKind
from pipelines.video.captured import CapturedCalls
from pipelines.video.compiling import compiled

from .codec import VideoDecoder
from .pixels import to_bytes


class FrameDecoder:
    """Latents to bytes of frames by one decoder, whose state and counts stay the decoder's own.

    The first call of a stream runs as written: it comes once. Captured calls use one pool: decode on one CUDA stream.
    """

    def __init__(
        self, decoder: VideoDecoder, kind: BackendKind, *, device: torch.device, compiler: str = "inductor"
    ) -> None:
        self.decoder = decoder
        self._later: Callable[..., torch.Tensor] = _later
        if kind.compiled:
            self._later = compiled(_later, compiler)
        self._calls = CapturedCalls(device, warm_calls=2) if kind.captured else None

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """latents [B, C, n, h, w], an entry for each of `rows` (None: all) -> uint8 [B, F, H, W, 3] on the device,
        valid until the next call. Rows, frames and errors as `VideoDecoder.decode` has them.
        """
        numbers = list(range(self.decoder.rows)) if rows is None else list(rows)
        in_order = numbers == list(range(self.decoder.rows))
        if not in_order or any(self.decoder.latents_done(number) == 0 for number in numbers):
            return to_bytes(self.decoder.decode(latents, rows))

        def run(latents: torch.Tensor) -> torch.Tensor:
            return self._later(self.decoder, latents)

        frames = run(latents) if self._calls is None else self._calls("decode", run, latents)
        self.decoder.advance(rows, latents.shape[2])
        return frames


def _later(decoder: VideoDecoder, latents: torch.Tensor) -> torch.Tensor:
    return to_bytes(decoder.run(latents, None, first=False))
