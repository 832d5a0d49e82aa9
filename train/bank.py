"""Owns the training pictures: scenes, photograph crops and synthetic clutter, pre-rendered into device memory.

`image_bank` makes uint8 pictures for the autoencoder; LatentBank holds pairs of latents (before and after the style)
with token ids for the denoiser. Independent of losses.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .captions import caption
from .networks import IMAGE_SIZE_PX, LATENT_SIZE
from .tokenizer import token_ids
from .vocabulary_world import LIGHTS, STYLES
from .world import SceneSpec, apply_lights, apply_styles, render_covered, sample_specs

CAPTIONS_PER_ITEM = 2
PHOTO_SUBJECT = -2
"""Marks a photograph in a spec's subject field."""
PHOTO_STYLES = (0.25, 0.1, 0.2, 0.1, 0.1, 0.15, 0.1)
"""Sampling weights of STYLES for photographs: the styles that the denoiser learns slowest are drawn more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceMaterial:
    """What pictures are made of. sprites: [S, 4, h, h] float 0..1; photos: uint8 [3, h, w] RGB, all on one device."""

    sprites: Tensor
    photos: list[Tensor]

    @property
    def device(self) -> torch.device:
        """The device that everything is rendered on."""
        return self.sprites.device


def make_source(sprites: np.ndarray, photos: Sequence[np.ndarray], device: torch.device) -> SourceMaterial:
    """sprites: uint8 [S, h, h, 4] straight alpha; photos: uint8 [h, w, 3] RGB."""
    layers = torch.from_numpy(sprites).to(device).permute(0, 3, 1, 2).float() / 255
    return SourceMaterial(
        sprites=layers, photos=[torch.from_numpy(np.ascontiguousarray(p)).permute(2, 0, 1).to(device) for p in photos]
    )


def uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[n, 1, 1, 1] float32, uniform in low..high, on the generator's device."""
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator, device=generator.device)


def crop_photo(photo: Tensor, n: int, generator: torch.Generator, *, smallest: float = 0.5) -> Tensor:
    """n square crops [n, 3, 192, 192] in 0..1 of one photograph: random position, scale, flip and slight rotation.

    smallest: the shortest crop side as a share of the photograph's short side.
    """
    height, width = photo.shape[1:]
    device, size = photo.device, IMAGE_SIZE_PX
    side = uniform(n, smallest, 0.96, generator).flatten() * min(height, width)
    u = torch.rand(4, n, generator=generator, device=device)
    x0, y0 = u[0] * (width - side), u[1] * (height - side)
    flip = torch.where(u[2] < 0.5, -1.0, 1.0)
    angle = (u[3] * 2 - 1) * math.radians(4)
    line = (torch.arange(2 * size, device=device) + 0.5) / size - 1
    gx, gy = line.view(1, 1, -1) * flip.view(-1, 1, 1), line.view(1, -1, 1)
    cos, sin = angle.cos().view(-1, 1, 1), angle.sin().view(-1, 1, 1)
    half = (side / 2).view(-1, 1, 1)
    px = (x0 + side / 2).view(-1, 1, 1) + half * (gx * cos - gy * sin)
    py = (y0 + side / 2).view(-1, 1, 1) + half * (gx * sin + gy * cos)
    grid = torch.stack([px / width * 2 - 1, py / height * 2 - 1], -1)
    picture = (photo.float() / 255).expand(n, -1, -1, -1)
    fine = functional.grid_sample(picture, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return functional.avg_pool2d(fine, 2)


def jitter_colours(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Random brightness, contrast, saturation and colour cast of [B, 3, H, W] in 0..1."""
    n = pictures.shape[0]
    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * uniform(n, 0.6, 1.35, generator)
    middle = pictures.mean((1, 2, 3), keepdim=True)
    pictures = middle + (pictures - middle) * uniform(n, 0.75, 1.25, generator)
    cast = 1 + 0.08 * torch.randn(n, 3, 1, 1, generator=generator, device=pictures.device)
    return (pictures * uniform(n, 0.75, 1.2, generator) * cast).clamp(0, 1)


def photo_crops(source: SourceMaterial, n: int, generator: torch.Generator) -> Tensor:
    """n crops [n, 3, 192, 192] in 0..1 of randomly chosen photographs with jittered colours."""
    which = torch.randint(len(source.photos), (n,), generator=generator, device=source.device).tolist()
    chosen = sorted(set(which))
    crops = [crop_photo(source.photos[i], which.count(i), generator) for i in chosen]
    order = torch.randperm(n, generator=generator, device=source.device)
    return jitter_colours(torch.cat(crops)[order], generator)


def dead_leaves(source: SourceMaterial, n: int, generator: torch.Generator, leaves: int = 48) -> Tensor:
    """n pictures of overlapping discs with scale-free sizes (Lee, Mumford and Huang 2001) and random colours."""
    size, device = IMAGE_SIZE_PX, source.device
    line = (torch.arange(size, device=device) + 0.5) / size
    picture = torch.rand(n, 3, 1, 1, generator=generator, device=device).expand(n, 3, size, size)
    for _ in range(leaves):
        u = torch.rand(7, n, 1, 1, 1, generator=generator, device=device)
        radius = 0.02 / (u[0] * 0.95 + 0.05)
        dx, dy = line.view(1, 1, 1, -1) - u[1], line.view(1, 1, -1, 1) - u[2]
        shade = 1 + (u[3] - 0.5) * 6 * (dx + dy)
        colour = torch.rand(n, 3, 1, 1, generator=generator, device=device) * shade
        cover = ((radius - (dx.square() + dy.square()).sqrt()) * size + 0.5).clamp(0, 1)
        picture = picture * (1 - cover) + colour.clamp(0, 1) * cover
    return picture


def image_bank(source: SourceMaterial, count: int, chunk: int, generator: torch.Generator) -> Tensor:
    """uint8 [count, 3, 192, 192]: half scenes, 38 % photographs (a third styled), 12 % dead leaves."""
    bank = torch.empty(count, 3, IMAGE_SIZE_PX, IMAGE_SIZE_PX, dtype=torch.uint8, device=source.device)
    for start in range(0, count, chunk):
        n = min(chunk, count - start)
        leaves, crops = max(1, n * 12 // 100), max(1, n * 38 // 100)
        scenes = max(1, n - leaves - crops)
        photos = photo_crops(source, crops, generator)
        third = max(1, crops // 3)
        style = torch.randint(1, len(STYLES), (third,), generator=generator, device=source.device)
        photos = torch.cat([apply_styles(photos[:third], style), photos[third:]])
        plain, styled = random_scenes(source, scenes, generator)[1:3]
        pick = torch.rand(scenes, 1, 1, 1, generator=generator, device=source.device) < 0.6
        pictures = torch.cat([torch.where(pick, styled, plain), photos, dead_leaves(source, leaves, generator)])
        bank[start : start + n] = (pictures[:n].clamp(0, 1) * 255).round().byte()
    return bank


def random_scenes(
    source: SourceMaterial, n: int, generator: torch.Generator, *, held_out: bool | None = False
) -> tuple[SceneSpec, Tensor, Tensor, Tensor]:
    """(spec, plain, styled, coverage) of n random combinations: pictures [n, 3, 192, 192] and the subject's
    coverage [n, 1, 192, 192], all in 0..1.
    """
    spec = sample_specs(n, generator, source.device, held_out, subjects=source.sprites.shape[0])
    return spec, *render_covered(spec, source.sprites, generator, IMAGE_SIZE_PX)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentBank:
    """N items. plain, styled: latents [N, 4, 48, 48] float16; ids: int16 [N, K, 32], K captions each.

    changed: bool [N], whether plain and styled differ; the first `scenes` items are scenes, the rest photographs.
    coverage: [N, 1, 48, 48] float16, the fraction of each cell that the subject covers.
    """

    plain: Tensor
    styled: Tensor
    ids: Tensor
    changed: Tensor
    coverage: Tensor
    scenes: int


Encode = Callable[[Tensor], Tensor]


def latent_bank(
    source: SourceMaterial,
    encode: Encode,
    tokenizer: Any,
    scenes: int,
    photos: int,
    chunk: int,
    generator: torch.Generator,
) -> LatentBank:
    """Render scenes and photographs and encode both versions. encode: pictures in 0..1 to latents [n, 4, 48, 48]."""
    rng = random.Random(int(torch.randint(2**31, (1,), generator=generator, device=source.device)))
    parts: list[tuple[Tensor, Tensor, Tensor, list[str], Tensor]] = []
    for total, make in ((scenes, random_scenes), (photos, random_photos)):
        for start in range(0, total, chunk):
            spec, plain, styled, covered = make(source, min(chunk, total - start), generator)
            rows = torch.stack(spec, 1)
            texts = [text for row in rows.tolist() for text in item_captions(row, rng)]
            cells = functional.interpolate(covered, size=LATENT_SIZE, mode="area").half()
            parts.append((encode(plain).half(), encode(styled).half(), rows, texts, cells))
    specs = torch.cat([p[2] for p in parts])
    photo = specs[:, 0] == PHOTO_SUBJECT
    ids = torch.tensor(token_ids(tokenizer, [text for p in parts for text in p[3]]), dtype=torch.int16)
    return LatentBank(
        plain=torch.cat([p[0] for p in parts]),
        styled=torch.cat([p[1] for p in parts]),
        ids=ids.view(specs.shape[0], CAPTIONS_PER_ITEM, -1).to(source.device),
        changed=(specs[:, 3] > 0) | (photo & (specs[:, 2] > 0)),
        coverage=torch.cat([p[4] for p in parts]),
        scenes=scenes,
    )


def random_photos(
    source: SourceMaterial, n: int, generator: torch.Generator
) -> tuple[SceneSpec, Tensor, Tensor, Tensor]:
    """(spec, plain, styled, no coverage) of photograph crops: 30 % under a light; subject is PHOTO_SUBJECT."""
    device = source.device
    pictures = photo_crops(source, n, generator)
    light = torch.randint(1, len(LIGHTS), (n,), generator=generator, device=device)
    light = torch.where(torch.rand(n, generator=generator, device=device) < 0.3, light, torch.zeros_like(light))
    style = torch.multinomial(torch.tensor(PHOTO_STYLES, device=device), n, replacement=True, generator=generator)
    subject = torch.full((n,), PHOTO_SUBJECT, device=device)
    lit = apply_lights(pictures, light, generator)
    return SceneSpec(subject, subject, light, style), pictures, apply_styles(lit, style), torch.zeros_like(lit[:, :1])


def item_captions(row: list[int], rng: random.Random) -> list[str]:
    """CAPTIONS_PER_ITEM captions for a spec row; photographs are sometimes described by light and style only."""
    subject, place, light, style = row
    if subject != PHOTO_SUBJECT:
        return [caption(subject, place, light, style, rng) for _ in range(CAPTIONS_PER_ITEM)]
    if style > 0 and light == 0 and rng.random() < 0.15:
        return [label for label in STYLES[style].labels[:1] for _ in range(CAPTIONS_PER_ITEM)]
    return [caption(-1, -1, light, style, rng, photo=True) for _ in range(CAPTIONS_PER_ITEM)]
