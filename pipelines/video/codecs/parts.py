"""Owns the streaming steps of the tiny autoencoder as modules of positional tensors, and what runs a compiled step.

A step takes the state of all rows and returns the new one. Independent of transformers, executors and compilers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from pipelines.core.parts import Part, PartCall, Tensors

from .codec import FrameDecoder, VideoCodec
from .memory import FeatureMemory, Pass
from .pixels import in_bytes
from .tiny import TinyDecoderStream, TinyVideoAutoencoder, TinyVideoCodec


class _GivenMemory(FeatureMemory):
    """The memory of one step: reads what is given, and collects what is written."""

    def __init__(self, given: Sequence[torch.Tensor]) -> None:
        super().__init__(given[0].shape[0], device=given[0].device, dtype=given[0].dtype)
        self._given = given
        self.written: list[torch.Tensor] = []

    def read(self, slot: int, rows: torch.Tensor | None) -> torch.Tensor:
        return self._given[slot]

    def write(self, slot: int, rows: torch.Tensor | None, values: torch.Tensor) -> None:
        self.written.append(values)


class DecodeStep(nn.Module):
    """(latents [B, C, n, h, w] float32, state tensors) -> (uint8 frames [B, 4n, H, W, 3], new state tensors).

    For rows that are not at their first call.
    """

    def __init__(self, module: TinyVideoAutoencoder) -> None:
        super().__init__()
        self.module = module

    def forward(self, latents: torch.Tensor, *state: torch.Tensor) -> Tensors:
        memory = _GivenMemory(state)
        run = Pass(memory=memory, rows=None, first=False)
        pictures = self.module.decode_pictures(latents.to(state[0].dtype), run, range(len(state)))
        # Channels last before rounding: compilers compute the last convolution in that order.
        frames = torch.unflatten(in_bytes(pictures.permute(0, 2, 3, 1)), 0, (-1, latents.shape[0]))
        return (frames.transpose(0, 1), *memory.written)


def decode_step(codec: TinyVideoCodec, *, frames: int, height: int, width: int) -> Part:
    """Return the step that decodes `frames` latent frames of one stream to frames of height × width pixels."""
    stream = codec.decoder(height=height, width=width)
    size = (1, codec.latent_channels, frames, height // codec.factor, width // codec.factor)
    state = {f"state_{i}": torch.zeros_like(stream.memory.read(i, None)) for i in range(len(stream.memory.shapes))}
    latents = torch.zeros(size, dtype=torch.float32, device=codec.device)
    return decode_step_part(codec, {"latents": latents, **state})


def decode_step_part(codec: VideoCodec, inputs: Mapping[str, torch.Tensor]) -> Part:
    """Return the decoding step at the shapes of `inputs`: latents, then state_0, state_1, ..."""
    assert isinstance(codec, TinyVideoCodec), codec
    return Part(name="decode", module=DecodeStep(codec.module), inputs=inputs)


class PartFrameDecoder:
    """A `FrameDecoder` that runs compiled steps, and the first step of a stream by the plain decoder.

    call: the compiled form of `part`, of `decode_step`. plain: over the same `decoder`, whose state both change.
    plain_steps: how many steps the plain decoder ran, by reason.
    """

    def __init__(self, call: PartCall, part: Part, plain: FrameDecoder, decoder: TinyDecoderStream) -> None:
        self._call, self._plain, self.decoder = call, plain, decoder
        self._shape = part.inputs["latents"].shape
        self.plain_steps: Counter[str] = Counter()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """See `FrameDecoder`."""
        reason = self._refusal(latents)
        if reason:
            self.plain_steps[reason] += 1
            return self._plain.decode(latents, rows)
        memory = self.decoder.memory
        state = [memory.read(slot, None) for slot in range(len(memory.shapes))]
        frames, *written = self._call(latents.float(), *state)
        for slot, values in enumerate(written):
            memory.write(slot, None, values)
        self.decoder.advance(rows, latents.shape[2])
        return frames

    def _refusal(self, latents: torch.Tensor) -> str:
        if self.decoder.latents_done(0) == 0:
            return "it is the first step of the stream"
        return "" if latents.shape == self._shape else f"there are {latents.shape[2]} latent frames"
