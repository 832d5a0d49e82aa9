"""Owns the reconstruction losses of clips, on pixels in space and time. Independent of networks."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

SLOPES, COARSE_SLOPES, CHANGES = 1.0, 0.5, 0.5
SQUARED, SQUARED_CHANGES = 6.0, 20.0


def slopes(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Differences of neighbouring pixels along x and y of [..., h, w]."""
    return clip[..., 1:] - clip[..., :-1], clip[..., 1:, :] - clip[..., :-1, :]


def pixel_loss(decoded: Tensor, clip: Tensor, sharp: Tensor) -> tuple[Tensor, Tensor]:
    """(loss, squared error) of decoded against clip, both [B, 3, F, h, w] float32, clip in 0..1.

    Absolute errors of pixels, of gradients at two scales (edges, and slightly displaced textures) and of changes from
    frame to frame (flicker). sharp: 0..1 on the device; towards 1 squared errors (as in PSNR) count more and absolute
    ones half. Squared errors of the changes keep a latent's four frames distinct; without them they were drawn too
    similar (docs/log.md).
    """
    squared = functional.mse_loss(decoded, clip)
    changed, change = decoded.diff(dim=2), clip.diff(dim=2)
    coarse = [functional.avg_pool3d(x, (1, 2, 2)) for x in (decoded, clip)]
    gentle = (
        functional.l1_loss(decoded, clip)
        + SLOPES * _distance(slopes(decoded), slopes(clip))
        + COARSE_SLOPES * _distance(slopes(coarse[0]), slopes(coarse[1]))
        + CHANGES * functional.l1_loss(changed, change)
    )
    sharper = (1 + SQUARED * sharp) * squared + SQUARED_CHANGES * sharp * functional.mse_loss(changed, change)
    return (1 - 0.5 * sharp) * gentle + sharper, squared.detach()


def _distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    return torch.stack([functional.l1_loss(x, y) for x, y in zip(a, b, strict=True)]).sum()


def latent_loss(latents: Tensor, *, bound: float = 3.0) -> Tensor:
    """Distance of raw latents [B, C, n, h, w] from zero mean and unit channel covariance, plus the excess over ±bound.

    The tiny decoder squashes latents into ±3, and a denoiser's noise has unit variance.
    """
    rows = latents.transpose(0, 1).flatten(1)
    mean = rows.mean(1)
    centred = rows - mean.view(-1, 1)
    covariance = centred @ centred.T / rows.shape[1]
    unit = torch.eye(covariance.shape[0], device=latents.device)
    beyond = (latents.abs() - bound).clamp(min=0).square().mean()
    return mean.square().mean() + (covariance - unit).square().sum() / unit.shape[0] + beyond
