"""Owns the tiny causal video autoencoder (the taew2_1 kind): trainable module, loading, and streaming as a VideoCodec.

All frames of a chunk go through each layer at once; the state after a chunk is one frame for each memory block. The
first three of the decoder's raw frames are dropped, so that latents cover frames as Wan's do: 1, 4, 4, ...
Independent of transformers, prompts and files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from pipelines.core.errors import InputError, ModelLayoutError

from .codec import CodecStream, check_frame_size, check_latents, check_pixels, latents_of
from .memory import FeatureMemory, Pass
from .tiny_layers import TIME_FACTOR, TinyCodecConfig, infer_config, make_decoder, make_encoder

TRIMMED_FRAMES = TIME_FACTOR - 1  # raw frames of the decoder before a stream's first frame


class TinyVideoAutoencoder(nn.Module):
    """The trainable network. encode and decode take whole clips; pixels are about [0, 1], not clamped."""

    def __init__(self, config: TinyCodecConfig | None = None) -> None:
        super().__init__()
        self.config = config or TinyCodecConfig()
        self.factor = 8 * self.config.patch_size
        self.encoder = make_encoder(self.config)
        self.decoder = make_decoder(self.config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Reconstruct a clip [B, 3, 1 + 4k, H, W] in [0, 1]; the result has the same shape."""
        return self.decode(self.encode(pixels))

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode a clip [B, 3, 1 + 4k, H, W] in [0, 1] to latents [B, C, 1 + k, h, w]."""
        latents_of(pixels.shape[2], first=True)
        return self.encode_groups(fill_groups(pixels, at=self.config.encoder_padding))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, C, n, h, w] of a clip to pixels [B, 3, 1 + 4(n - 1), H, W]."""
        return self.decode_raw(latents)[:, :, TRIMMED_FRAMES:]

    def encode_groups(self, pixels: torch.Tensor, run: Pass | None = None, slots: Sequence[int] = ()) -> torch.Tensor:
        """Encode groups of four frames [B, 3, 4n, H, W] to latents [B, C, n, h, w]. run, slots: see LayerStack."""
        batch = pixels.shape[0]
        frames = _time_major(pixels)
        if self.config.patch_size > 1:
            frames = F.pixel_unshuffle(frames, self.config.patch_size)
        return _batch_major(self.encoder(frames, batch=batch, run=run, slots=slots), batch)

    def decode_raw(self, latents: torch.Tensor, run: Pass | None = None, slots: Sequence[int] = ()) -> torch.Tensor:
        """Decode latents [B, C, n, h, w] to frames [B, 3, 4n, H, W], including the three before the first one."""
        return _batch_major(self.decode_pictures(latents, run, slots), latents.shape[0])

    def decode_pictures(
        self, latents: torch.Tensor, run: Pass | None = None, slots: Sequence[int] = ()
    ) -> torch.Tensor:
        """`decode_raw`, as pictures [4n * B, 3, H, W]: the first one of all B clips, the second ones, ..."""
        frames: torch.Tensor = self.decoder(_time_major(latents), batch=latents.shape[0], run=run, slots=slots)
        return F.pixel_shuffle(frames, self.config.patch_size) if self.config.patch_size > 1 else frames


def load_tiny_autoencoder(
    state: Mapping[str, torch.Tensor], *, encoder_padding: Literal["end", "front"] = "end"
) -> TinyVideoAutoencoder:
    """Build the module of a state dict with published names, taking its widths from the shapes and its dtype as stored.

    A time layer may have weights for more frames than are used here (those of files that can also double the time of
    the first stage do): the last frames are used. Raises ModelLayoutError for missing, unexpected or misshapen tensors.
    """
    config = infer_config(state, encoder_padding)
    with torch.device("meta"):
        module = TinyVideoAutoencoder(config)
    own = module.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    tensors = {name: _last_frames(name, state[name], own[name].shape) for name in own.keys() & state.keys()}
    wrong = [
        f"{name} {tuple(tensor.shape)} instead of {tuple(own[name].shape)}"
        for name, tensor in sorted(tensors.items())
        if tensor.shape != own[name].shape
    ]
    if missing or unexpected or wrong:
        raise ModelLayoutError(
            f"The weights do not fit a tiny video autoencoder: missing {missing or 'none'}, unexpected "
            f"{unexpected or 'none'}, misshapen {wrong or 'none'}.",
            "Download the file again, or use one of the taew2_1 kind.",
        )
    module.load_state_dict(tensors, assign=True)
    return module


class TinyVideoCodec:
    """A TinyVideoAutoencoder as a VideoCodec. Uses the module's own weights, on their device (in channels-last order).

    With "end" padding a live encoder cannot wait for the next three frames: it takes the first frame four times instead
    of once, and its latents lag by `encoder_delay_frames` = 3 frames. A first call of 4n frames (instead of 1 + 4k) is
    neither padded nor late; `encode_clip` uses that.
    """

    time_factor = TIME_FACTOR

    def __init__(self, module: TinyVideoAutoencoder, *, channels_last: bool = True) -> None:
        self.module = module
        self.latent_channels = module.config.latent_channels
        self.factor = module.factor
        self.encoder_delay_frames = TRIMMED_FRAMES if module.config.encoder_padding == "end" else 0
        self.channels_last = channels_last
        order = torch.channels_last if channels_last else torch.contiguous_format
        for parameter in module.parameters():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=order)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the convolutions; latents and pixels are returned in float32 (float64 for float64)."""
        return next(self.module.parameters()).dtype

    def decoder(self, *, height: int, width: int, rows: int = 1) -> TinyDecoderStream:
        """Make a streaming decoder for frames of height × width pixels, `rows` streams in one batch."""
        check_frame_size(height, width, self.factor)
        return TinyDecoderStream(self, height=height, width=width, rows=rows)

    def encoder(self, *, height: int, width: int, rows: int = 1) -> TinyEncoderStream:
        """Make a streaming encoder for frames of height × width pixels, `rows` streams in one batch."""
        check_frame_size(height, width, self.factor)
        return TinyEncoderStream(self, height=height, width=width, rows=rows)

    def memory(self, rows: int) -> FeatureMemory:
        """Make empty memory for `rows` rows, on the weights' device and in their dtype."""
        if rows < 1:
            raise InputError(f"{rows} rows were requested.", "Use 1 or more.")
        return FeatureMemory(rows, device=self.device, dtype=self.dtype)

    def exact(self, values: torch.Tensor) -> torch.Tensor:
        """Convert to the dtype of results."""
        return values.to(torch.promote_types(torch.float32, self.dtype))


class TinyDecoderStream(CodecStream):
    """Decodes chunk by chunk. Its state at 480×832 in float16 is 67 MB per row."""

    def __init__(self, codec: TinyVideoCodec, *, height: int, width: int, rows: int) -> None:
        memory = codec.memory(rows)
        super().__init__(memory, height=height, width=width)
        self._codec = codec
        self._size = height // codec.factor, width // codec.factor
        self._slots = codec.module.decoder.reserve(memory, *self._size, channels_last=codec.channels_last)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """latents [B, C, n, h, w], an entry for each of `rows` (None: all) -> pixels [B, 3, F, H, W] float32 in [0, 1];
        F = 1 + 4(n - 1) for rows at their first call, else 4n. Raises InputError.
        """
        numbers, index, first = self._begin(rows)
        height, width = self._size
        check_latents(latents, channels=self._codec.latent_channels, height=height, width=width, batch=len(numbers))
        pixels = self.run(latents, index, first=first)
        self.advance(numbers, latents.shape[2])
        return pixels

    @torch.no_grad()
    def run(self, values: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor:
        """`decode` without checks and counts."""
        run = Pass(memory=self._memory, rows=rows, first=first)
        latents = values.to(device=self._codec.device, dtype=self._codec.dtype)
        raw = self._codec.module.decode_raw(latents, run, self._slots)
        return self._codec.exact(raw[:, :, TRIMMED_FRAMES:] if first else raw).clamp(0, 1)


class TinyEncoderStream(CodecStream):
    """Encodes chunk by chunk. Its state at 480×832 in float16 is 50 MB per row."""

    def __init__(self, codec: TinyVideoCodec, *, height: int, width: int, rows: int) -> None:
        memory = codec.memory(rows)
        super().__init__(memory, height=height, width=width)
        self._codec = codec
        patch = codec.module.config.patch_size
        self._slots = codec.module.encoder.reserve(
            memory, height // patch, width // patch, channels_last=codec.channels_last
        )

    @torch.no_grad()
    def encode(self, pixels: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """pixels [B, 3, F, H, W] in [0, 1], an entry for each of `rows` (None: all) -> latents [B, C, n, h, w] float32;
        F = 1 + 4(n - 1) for rows at their first call, else 4n. Raises InputError.
        """
        numbers, index, first = self._begin(rows)
        check_pixels(pixels, height=self.height, width=self.width, batch=len(numbers))
        frames = pixels.shape[2]
        if not (first and self._codec.encoder_delay_frames and frames and not frames % TIME_FACTOR):
            latents_of(frames, first=first)
        latents = self.run(pixels, index, first=first)
        self.advance(numbers, latents.shape[2])
        return latents

    @torch.no_grad()
    def run(self, values: torch.Tensor, rows: torch.Tensor | None, *, first: bool) -> torch.Tensor:
        """`encode` without checks and counts."""
        run = Pass(memory=self._memory, rows=rows, first=first)
        pixels = values.to(device=self._codec.device, dtype=self._codec.dtype)
        if first and pixels.shape[2] % TIME_FACTOR:
            pixels = fill_groups(pixels, at="front")
        return self._codec.exact(self._codec.module.encode_groups(pixels, run, self._slots))


def fill_groups(pixels: torch.Tensor, *, at: Literal["end", "front"]) -> torch.Tensor:
    """Pad 1 + 4k frames to 4(k + 1) by repeating the last or the first one three times."""
    edge = pixels[:, :, -1:] if at == "end" else pixels[:, :, :1]
    copies = edge.expand(-1, -1, TRIMMED_FRAMES, -1, -1)
    return torch.cat((pixels, copies) if at == "end" else (copies, pixels), dim=2)


def _last_frames(name: str, tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    is_time_layer = name.startswith("decoder.") and name.endswith(".conv.weight") and tensor.dim() == 4
    return tensor[-shape[0] :] if is_time_layer and tensor.shape[0] > shape[0] else tensor


def _time_major(x: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] -> [T * B, C, H, W]."""
    return x.permute(2, 0, 1, 3, 4).flatten(0, 1)


def _batch_major(x: torch.Tensor, batch: int) -> torch.Tensor:
    """[T * B, C, H, W] -> [B, C, T, H, W]."""
    return x.view(-1, batch, *x.shape[1:]).permute(1, 2, 0, 3, 4)
