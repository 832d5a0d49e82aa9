"""Owns contact sheets of clips, for visual inspection. Independent of training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipelines.video.codecs.tiny import TinyVideoCodec
from pipelines.video.codecs.wan import WanCodec

from .codecs import Codecs


def contact_sheet(rows: Sequence[Tensor], frames: int = 8) -> Tensor:
    """uint8 [h, w, 3]: a row per clip [3, F, S, S] in 0..1, with `frames` frames evenly spaced from the first to the
    last.
    """
    drawn = []
    for clip in rows:
        index = torch.linspace(0, clip.shape[1] - 1, frames, device=clip.device).round().long()
        drawn.append(clip[:, index].permute(2, 1, 3, 0).flatten(1, 2))
    return (torch.cat(drawn).float().clamp(0, 1) * 255).round().byte().cpu()


def write_sheet(sheet: Tensor, file: Path, quality: int = 92) -> None:
    """Write a sheet [h, w, 3] as JPEG or PNG, by the file's suffix."""
    from PIL import Image

    Image.fromarray(sheet.numpy()).save(file, quality=quality)


@torch.no_grad()
def codec_sheet(codecs: Codecs, clips: Tensor, file: Path) -> None:
    """Three rows per clip of [n, 3, 1 + 4k, S, S]: original, through the stock autoencoder, through the tiny one."""
    size = {"height": clips.shape[-2], "width": clips.shape[-1], "rows": clips.shape[0]}
    stock, tiny = WanCodec(codecs.vae), TinyVideoCodec(codecs.tiny)
    rebuilt = [
        clips,
        stock.decoder(**size).decode(stock.encoder(**size).encode(clips)),
        tiny.decoder(**size).decode(tiny.encoder(**size).encode(clips)),
    ]
    write_sheet(contact_sheet([kind[row] for row in range(clips.shape[0]) for kind in rebuilt]), file)
