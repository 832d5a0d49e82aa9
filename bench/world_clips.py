"""Owns the rendered clips and held-out captions that video models and their judges are measured with.

Sprites are read without OpenCV. Knows no model.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.conditioning.actions import ACTION_NAMES
from train.clips.captions import clip_caption
from train.clips.motions import MOTIONS, ClipSpec, sample_clip_specs
from train.clips.render import Clips, render_clips

PACK = Path("train/data/pack.npz")
HELD_OUT_SEED = 99


def load_sprites(file: Path | None = None) -> Tensor:
    """Sprites of all subjects, [S, 4, h, h] float straight alpha in 0..1, on the CPU. file: None for PACK."""
    file = file or PACK
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; run python -m train.collect to make it")
    with np.load(file, allow_pickle=False) as stored:
        sprites = torch.from_numpy(np.ascontiguousarray(stored["sprites"]))
    return sprites.permute(0, 3, 1, 2).float() / 255


def no_actions(clips: int, latents: int, device: torch.device | None = None) -> Tensor:
    """[clips, latents, 5] zeros."""
    return torch.zeros(clips, latents, len(ACTION_NAMES), device=device)


def motion_clips(
    clips: int, latents: int, sprites: Tensor, generator: torch.Generator, *, size_px: int = 128
) -> tuple[ClipSpec, Clips]:
    """Clips of all combinations in which every motion comes equally often; a subject's motion always has a subject."""
    device = sprites.device
    spec = sample_clip_specs(clips, generator, device, None, subjects=sprites.shape[0])
    motion = torch.arange(clips, device=device) % len(MOTIONS)
    needs = torch.tensor([m.needs_subject for m in MOTIONS], device=device)[motion]
    other = torch.randint(sprites.shape[0], (clips,), generator=generator, device=device)
    spec = spec._replace(motion=motion, subject=torch.where(needs & (spec.subject < 0), other, spec.subject))
    actions = no_actions(clips, latents, device)
    return spec, render_clips(spec, sprites, actions, generator, latents=latents, size_px=size_px)


def held_out_captions(count: int, subjects: int, seed: int = HELD_OUT_SEED) -> tuple[ClipSpec, list[str]]:
    """count held-out combinations (on the CPU) and a caption in a random wording for each."""
    generator = torch.Generator().manual_seed(seed)
    spec = sample_clip_specs(count, generator, torch.device("cpu"), True, subjects=subjects)
    rng = random.Random(seed)
    return spec, [clip_caption(s, p, light, y, m, rng) for s, p, light, y, m in torch.stack(list(spec), 1).tolist()]


def as_bytes(frames: Tensor) -> Tensor:
    """Clips' frames [B, 3, F, H, W] in 0..1 as a stream's: uint8 [B, F, H, W, 3]."""
    return (frames.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 4, 1)
