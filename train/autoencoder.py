"""Owns the training of the autoencoder: losses, data order, metrics. Independent of text and noise schedules."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as functional
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from .bank import SourceMaterial, image_bank, random_scenes
from .budget import TimeBudget
from .networks import IMAGE_SIZE_PX, make_autoencoder
from .session import Average, TrainingSession, adamw, set_rate, warm_cosine

STAGE = "autoencoder"
PEAK_RATE = 2e-3
LATENT_NOISE = 0.08
SHARP_FROM = 0.55
"""Share of the budget after which squared error takes over (as measured by PSNR)."""


def encode_pictures(vae: AutoencoderTiny, pictures: Tensor) -> Tensor:
    """Latents [B, 4, 48, 48] of pictures [B, 3, 192, 192] in 0..1; a denoiser sees them times LATENT_SCALE."""
    latents: Tensor = vae.encode(pictures * 2 - 1).latents
    return latents


def decode_latents(vae: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pictures [B, 3, 192, 192] in 0..1, clamped, of latents [B, 4, 48, 48]."""
    decoded: Tensor = vae.decode(latents).sample
    return (decoded / 2 + 0.5).clamp(0, 1)


def _slopes(picture: Tensor) -> tuple[Tensor, Tensor]:
    return picture[..., 1:] - picture[..., :-1], picture[..., 1:, :] - picture[..., :-1, :]


def autoencoder_loss(vae: AutoencoderTiny, pictures: Tensor, noise: Tensor, sharp: float) -> tuple[Tensor, Tensor]:
    """(loss, squared error): L1 + gradient loss blending into squared error as sharp goes 0..1, plus the distance of
    the latents' moments from zero mean and unit covariance.

    pictures: [B, 3, H, W] in 0..1; noise: standard normal, of the latents' shape, to make the decoder robust to errors.
    """
    latents = encode_pictures(vae, pictures).float()
    decoded = vae.decode(latents + LATENT_NOISE * noise).sample.float() / 2 + 0.5
    squared = functional.mse_loss(decoded, pictures)
    slope = torch.stack(
        [functional.l1_loss(d, p) for d, p in zip(_slopes(decoded), _slopes(pictures), strict=True)]
    ).sum()
    mean, covariance = moments(latents)
    unit = torch.eye(covariance.shape[0], device=covariance.device)
    distance = mean.square().mean() + (covariance - unit).square().sum() / unit.shape[0]
    gentle = functional.l1_loss(decoded, pictures) + slope
    loss = (1 - 0.85 * sharp) * gentle + (2 + 18 * sharp) * squared + 0.1 * distance
    return loss, squared


def moments(latents: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [C], covariance [C, C]) of the channels of latents [B, C, h, w]."""
    rows = latents.transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    centred = rows - mean.view(-1, 1)
    return mean, centred @ centred.T / rows.shape[1]


@torch.no_grad()
def whiten(vae: AutoencoderTiny, pictures: Tensor) -> None:
    """Fold the whitening of the pictures' latents into the adjacent convolutions; exact except for the clamp."""
    last, first = vae.encoder.layers[-1], vae.decoder.layers[0]
    mean, covariance = moments(encode_pictures(vae, pictures))
    values, vectors = torch.linalg.eigh(covariance)
    into, back = ((vectors * values.pow(power)) @ vectors.T for power in (-0.5, 0.5))
    last.weight.copy_(torch.einsum("ij,jkhw->ikhw", into, last.weight))
    last.bias.copy_(into @ (last.bias - mean))
    first.bias.add_(torch.einsum("ojhw,j->o", first.weight, mean))
    first.weight.copy_(torch.einsum("ojhw,ji->oihw", first.weight, back))


def train_autoencoder(session: TrainingSession, source: SourceMaterial, seconds: float) -> AutoencoderTiny:
    """Train for seconds (including rendering) and save the averaged weights as autoencoder.safetensors."""
    device, scale = session.device, session.scale
    budget = TimeBudget(seconds)
    generator = session.generator(11)
    bank = image_bank(source, scale.image_bank, scale.chunk, generator)
    session.log(STAGE, event="rendered", pictures=float(bank.shape[0]), took=budget.elapsed())
    vae = make_autoencoder().to(device=device, memory_format=torch.channels_last)
    continued = session.restore(STAGE, vae=vae)
    if continued:
        whiten(vae, bank[:1024].float() / 255)
    optimiser = adamw(list(vae.parameters()), PEAK_RATE, device)
    average = Average(vae.parameters(), decay=0.998)
    n = scale.autoencoder_batch
    running = True
    while running:
        fraction = budget.fraction()
        set_rate(optimiser, PEAK_RATE * (0.6 if continued else 1.0) * warm_cosine(budget.steps, fraction))
        rows = torch.randint(bank.shape[0], (n,), generator=generator, device=device)
        pictures = (bank[rows].float() / 255).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(n, 4, IMAGE_SIZE_PX // 4, IMAGE_SIZE_PX // 4, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            sharp = min(1.0, max(0.0, (fraction - SHARP_FROM) / 0.2))
            loss, squared = autoencoder_loss(vae, pictures, noise, 1.0 if continued else sharp)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        average.update()
        running = budget.tick()
        if budget.steps % (4 * scale.log_every) == 0 or not running:
            psnr = -10 * math.log10(max(float(squared.detach()), 1e-9))
            session.log(STAGE, step=float(budget.steps), loss=float(loss.detach()), train_psnr_db=psnr)
    average.swap()
    vae.eval()
    session.save(STAGE, vae=vae)
    session.log(STAGE, step=float(budget.steps), **measure_autoencoder(session, vae, source))
    return vae


def psnr_db(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture pair [B, 3, H, W] in 0..1: [B], in dB."""
    return -10 * torch.log10((a - b).square().mean((1, 2, 3)).clamp(min=1e-10))


@torch.no_grad()
def measure_autoencoder(session: TrainingSession, vae: AutoencoderTiny, source: SourceMaterial) -> dict[str, float]:
    """PSNR in dB on new scenes and on photograph crops of the source, and the latents' moments."""
    generator = session.generator(12)
    count = min(64, session.scale.eval_scenes)
    styled = random_scenes(source, count, generator)[2]
    latents = encode_pictures(vae, styled)
    world = float(psnr_db(decode_latents(vae, latents), styled).mean())
    result = {"world_psnr_db": world, "latent_mean": float(latents.mean().abs()), "latent_std": float(latents.std())}
    tests = test_pictures().to(session.device)
    scores = psnr_db(decode_latents(vae, encode_pictures(vae, tests)), tests).tolist()
    return result | dict(zip(("astronaut_db", "chelsea_db", "coffee_db"), scores, strict=True))


def test_pictures() -> Tensor:
    """scikit-image's astronaut, chelsea and coffee (never trained on), resized by area: [3, 3, 192, 192] in 0..1."""
    import cv2
    from skimage import data

    size = (IMAGE_SIZE_PX, IMAGE_SIZE_PX)
    pictures = [data.astronaut(), data.chelsea(), data.coffee()]
    resized = [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float() / 255
