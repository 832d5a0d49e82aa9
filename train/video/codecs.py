"""Owns mini-video's two trained autoencoders, with the moments that normalise their shared latents.

Checkpoints and reconstruction quality; independent of training.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pipelines.video.codecs.tiny import TinyVideoAutoencoder, TinyVideoCodec
from pipelines.video.codecs.wan import WanCodec
from train.session import TrainingSession

from .bank import Encode
from .first_weights import begin_stock, begin_tiny
from .networks import LATENT_CHANNELS, VIDEO_SIZE_PX, make_tiny_autoencoder, make_wan_autoencoder, set_latent_moments

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

STAGE = "video_autoencoder"
POSTERIOR_STD = 0.05
"""Also the noise on latents in training, to make decoders robust to errors."""


class Moments(nn.Module):
    """mean, std: [16] float32 buffers, per channel, of the stock autoencoder's latents."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("std", torch.ones(LATENT_CHANNELS))

    def normalise(self, raw: Tensor) -> Tensor:
        """Latents [B, 16, n, h, w] of the stock autoencoder -> those of the denoiser and the tiny one."""
        return (raw - self.mean.view(1, -1, 1, 1, 1)) / self.std.view(1, -1, 1, 1, 1)

    @torch.no_grad()
    def move_towards(self, raw: Tensor, share: float) -> None:
        """Update the running moments with raw latents [B, 16, n, h, w]."""
        rows = raw.float().transpose(0, 1).flatten(1)
        self.mean.lerp_(rows.mean(1), share)
        self.std.lerp_(rows.std(1).clamp(min=1e-3), share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Codecs:
    """vae: diffusers' AutoencoderKLWan; tiny: the live one; moments: between the latents of the two."""

    vae: AutoencoderKLWan
    tiny: TinyVideoAutoencoder
    moments: Moments

    def write_moments(self) -> None:
        """Write the moments into the stock autoencoder's configuration, rounded as in checkpoints."""
        mean, std = (values.half().tolist() for values in (self.moments.mean, self.moments.std))
        set_latent_moments(self.vae, mean, std)

    def encode(self) -> Encode:
        """Clips [n, 3, 4L - 3, S, S] in 0..1 to normalised latents [n, 16, L, S / 8, S / 8], by the stock encoder as
        the engine streams it from frame 0. n may change from call to call.
        """
        codec = WanCodec(self.vae)

        def encode(frames: Tensor) -> Tensor:
            encoder = codec.encoder(height=frames.shape[-2], width=frames.shape[-1], rows=frames.shape[0])
            return encoder.encode(frames)

        return encode


def make_codecs(session: TrainingSession) -> Codecs:
    """Untrained, on the session's device."""
    torch.manual_seed(session.seed)
    vae, tiny = make_wan_autoencoder(), make_tiny_autoencoder()
    begin_stock(vae)
    begin_tiny(tiny)
    set_posterior_noise(vae)
    return Codecs(vae=vae.to(session.device), tiny=tiny.to(session.device), moments=Moments().to(session.device))


@torch.no_grad()
def set_posterior_noise(vae: AutoencoderKLWan, std: float = POSTERIOR_STD) -> None:
    """Set the posterior's standard deviation to `std` everywhere: it is not trained, but callers may sample from it."""
    channels = vae.config.z_dim
    vae.quant_conv.weight[channels:].zero_()
    vae.quant_conv.bias[channels:].fill_(2 * math.log(std))


def save_codecs(session: TrainingSession, codecs: Codecs) -> None:
    """Write video_autoencoder.safetensors, float16."""
    session.save(STAGE, vae=codecs.vae, tiny=codecs.tiny, moments=codecs.moments)


def restore_codecs(session: TrainingSession, codecs: Codecs) -> bool:
    """Load them from this run, else from the resumed one; False if neither has them."""
    return session.restore(STAGE, vae=codecs.vae, tiny=codecs.tiny, moments=codecs.moments)


def load_codecs(session: TrainingSession) -> Codecs:
    """The trained autoencoders for inference, in bfloat16. Raises FileNotFoundError with the stage to run first."""
    codecs = make_codecs(session)
    session.require(STAGE, vae=codecs.vae, tiny=codecs.tiny, moments=codecs.moments)
    return codecs_in_use(session, codecs)


def codecs_in_use(session: TrainingSession, trained: Codecs) -> Codecs:
    """A bfloat16 copy for inference, of stock modules with the moments in the configuration."""
    codecs = make_codecs(session)
    codecs.vae.load_state_dict(trained.vae.state_dict())
    codecs.tiny.load_state_dict(trained.tiny.state_dict())
    codecs.moments.load_state_dict(trained.moments.state_dict())
    codecs.write_moments()
    for module in (codecs.vae, codecs.tiny):
        module.to(dtype=torch.bfloat16).eval().requires_grad_(False)
    return codecs


@torch.no_grad()
def measure_codecs(codecs: Codecs, clips: Tensor) -> dict[str, float]:
    """Reconstruction of clips [n, 3, 1 + 4k, 128, 128] in 0..1 through the engine's streaming codecs.

    PSNR in dB of the stock codec, of the tiny one, and of the tiny decoder on the stock encoder's latents (as in a
    generated stream); the error of the tiny encoder's latents; the latents' moments. Modules in evaluation mode.
    """
    size = {"height": VIDEO_SIZE_PX, "width": VIDEO_SIZE_PX, "rows": clips.shape[0]}
    stock, tiny = WanCodec(codecs.vae), TinyVideoCodec(codecs.tiny)
    latents, own = stock.encoder(**size).encode(clips), tiny.encoder(**size).encode(clips)
    rebuilt = {
        "stock_psnr_db": stock.decoder(**size).decode(latents),
        "tiny_psnr_db": tiny.decoder(**size).decode(own),
        "tiny_decoder_psnr_db": tiny.decoder(**size).decode(latents),
    }
    results = {name: psnr_db(frames, clips) for name, frames in rebuilt.items()}
    error = float((own - latents).square().mean().sqrt())
    moments = {"latent_std": float(latents.std()), "latent_most": float(latents.abs().amax())}
    return {**results, "tiny_latent_error": error, **moments}


def psnr_db(frames: Tensor, truth: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, the mean over the frames of clips [n, 3, F, h, w] in 0..1."""
    squared = (frames.float() - truth).square().mean((1, 3, 4)).clamp(min=1e-10)
    return float((-10 * torch.log10(squared)).mean())
