"""Owns the training clips of the autoencoders: scenes in motion, and moving views of photographs and clutter.

Trained on the world only, an autoencoder would blur camera pictures. Independent of networks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.bank import SourceMaterial, dead_leaves, photo_crops
from train.session import TrainingSession

from .bank import rendered_groups
from .networks import VIDEO_SIZE_PX
from .photo_clips import moving_views

WORLD_SHARE, PHOTO_SHARE = 0.75, 0.15
"""Shares of the clips; the rest is dead leaves, as is the photographs' share if there are none."""


def pixel_bank(
    session: TrainingSession, source: SourceMaterial, generator: torch.Generator, clips: int | None = None
) -> Tensor:
    """uint8 [clips, 3, F, 128, 128], F = 4 video_codec_latents - 3, in random order. clips: None for the scale's."""
    scale = session.scale
    count, latents = clips or scale.video_codec_clips, scale.video_codec_latents
    worlds = max(1, int(count * WORLD_SHARE))
    photos = int(count * PHOTO_SHARE) if source.photos else 0
    frames = 4 * latents - 3
    bank = torch.empty(count, 3, frames, VIDEO_SIZE_PX, VIDEO_SIZE_PX, dtype=torch.uint8, device=source.device)
    done = 0
    for _, _, clip in rendered_groups(session, source.sprites, worlds, latents, generator):
        done = _put(bank, done, clip.frames)
    for total, paint in ((photos, photo_crops), (count - worlds - photos, dead_leaves)):
        for start in range(0, total, scale.video_chunk):
            pictures = paint(source, min(scale.video_chunk, total - start), generator)
            done = _put(bank, done, moving_views(pictures, frames, VIDEO_SIZE_PX, generator))
    return bank[torch.randperm(count, generator=generator, device=source.device)]


def _put(bank: Tensor, done: int, frames: Tensor) -> int:
    bank[done : done + frames.shape[0]] = (frames.clamp(0, 1) * 255).round().byte()
    return done + frames.shape[0]


def draw_clips(bank: Tensor, n: int, frames: int, size_px: int) -> Tensor:
    """n random windows of `frames` frames and size_px × size_px pixels from the bank: float32 [n, 3, frames, s, s] in
    0..1, half of them mirrored. Uses the device's default generator; does not synchronise with the device.
    """
    count, _, length, height, width = bank.shape
    device = bank.device
    u = torch.rand(5, n, 1, device=device)
    rows, first = ((u[i] * m).long().clamp(max=m - 1) for i, m in ((0, count), (1, length - frames + 1)))
    top, left = ((u[i] * m).long().clamp(max=m - 1) for i, m in ((2, height - size_px + 1), (3, width - size_px + 1)))
    steps = torch.arange(size_px, device=device)
    columns = left + torch.where(u[4] < 0.5, steps, steps.flip(0))
    times = first + torch.arange(frames, device=device)
    cut = bank[
        rows[:, :, None, None], :, times[:, :, None, None], (top + steps)[:, None, :, None], columns[:, None, None, :]
    ]
    return cut.permute(0, 4, 1, 2, 3).float() / 255
