"""Owns frame decoders over a streaming video decoder: latents to uint8 frames, by calls that an executor runs.

Independent of the transformer, chunk schedules and streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from pipelines.core.execution import Calls, call_eagerly

from .codec import VideoDecoder
from .pixels import to_bytes


def decode_later(decoder: VideoDecoder, latents: torch.Tensor) -> torch.Tensor:
    """Decode to uint8 frames [B, F, H, W, 3] of all rows, none of which is at its first call."""
    return to_bytes(decoder.run(latents, None, first=False))


class CodecFrameDecoder:
    """A `FrameDecoder` over a streaming decoder, which keeps the state and the counts.

    calls: of the executor; they share one memory pool, so decode on one CUDA stream. decode_all: `decode_later`, or it
    compiled. The first call of a stream runs eagerly, as it happens only once.
    """

    WARM_CALLS = 2

    def __init__(
        self,
        decoder: VideoDecoder,
        *,
        calls: Calls = call_eagerly,
        decode_all: Callable[[VideoDecoder, torch.Tensor], torch.Tensor] = decode_later,
    ) -> None:
        self.decoder, self._calls, self._decode_all = decoder, calls, decode_all

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """See `FrameDecoder`."""
        numbers = list(range(self.decoder.rows)) if rows is None else list(rows)
        in_order = numbers == list(range(self.decoder.rows))
        if not in_order or any(self.decoder.latents_done(number) == 0 for number in numbers):
            return to_bytes(self.decoder.decode(latents, rows))

        def run(latents: torch.Tensor) -> torch.Tensor:
            return self._decode_all(self.decoder, latents)

        frames = self._calls("decode", run, latents)
        self.decoder.advance(rows, latents.shape[2])
        return frames
