"""Owns decoding a few latent frames of a clip again without the codec's state before them: a window and its margin.

After DEMON's windowed decode, in time. A stream that keeps a snapshot of the state (`CodecStream.snapshot`) needs none
of this: restoring it decodes the same frames from the window's own latents alone. Independent of streams.
"""

from __future__ import annotations

import torch

from cache.features.perturbation import Perturbation, changed_outputs

from .codec import VideoCodec, decode_clip


def temporal_margin(codec: VideoCodec, *, latents: int = 24, inputs: int = 2) -> int | None:
    """Return how many latent frames before its own a decoded frame depends on, as changed bits show (float32).

    latents: of the clip that is tried. None: the dependence does not end within it.
    """
    factor = codec.time_factor

    def decode(clip: torch.Tensor) -> torch.Tensor:
        return decode_clip(codec, clip)

    at = (1, 1, 1)
    how = Perturbation(inputs=inputs, dtype=torch.float32)
    (_, last), *_ = changed_outputs(decode, (1, codec.latent_channels, latents, 3, 3), at, how)
    reached = -(-last // factor)  # frame 0 is latent 0; frames 1 to 4 are latent 1
    return reached - at[0] if reached < latents - 1 else None


def decode_window(codec: VideoCodec, latents: torch.Tensor, first: int, stop: int, margin: int) -> torch.Tensor:
    """Decode the frames of latents first..stop of a clip [B, C, n, h, w]: [B, 3, F, H, W] in [0, 1].

    Equals that part of the whole clip's decoding where `margin` is at least the codec's; the clip's beginning needs
    none. F = 4 (stop - first), or 3 less if `first` is 0. margin: 1 or more, as the first latent is one frame.
    """
    assert margin >= 1
    assert 0 <= first < stop <= latents.shape[2]
    start = max(0, first - margin)
    frames = decode_clip(codec, latents[:, :, start:stop])
    wanted = codec.time_factor * (stop - first) - (0 if first else codec.time_factor - 1)
    return frames[:, :, frames.shape[2] - wanted :]
