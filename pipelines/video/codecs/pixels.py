"""Owns the conversion between uint8 frames [F, H, W, 3] and the pixels of video autoencoders."""

from __future__ import annotations

import numpy as np
import torch

from pipelines.core.errors import InputError


def to_pixels(frames: np.ndarray, *, device: torch.device | None = None) -> torch.Tensor:
    """uint8 frames [F, H, W, 3] -> pixels [1, 3, F, H, W] float32 in [0, 1]: x / 255. The transfer is in uint8.

    Raises InputError for an image [H, W, 3] or anything that is not uint8 RGB.
    """
    if frames.ndim == 3:
        raise InputError(
            f"An image {frames.shape} was given where a video [F, H, W, 3] is needed.",
            "Make it a video of one frame: image[None].",
        )
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise InputError(
            f"Frames of shape {frames.shape} and type {frames.dtype} are not [F, H, W, 3] uint8.",
            "Give 8-bit RGB frames.",
        )
    bytes_ = torch.from_numpy(np.ascontiguousarray(frames)).to(device or torch.device("cpu"))
    return bytes_.permute(3, 0, 1, 2)[None].to(torch.float32) / 255


def to_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, F, H, W] in [0, 1] -> uint8 [B, F, H, W, 3], contiguous, on the same device; rounded to nearest.

    Does not synchronise; the result stays on the device. Numbers outside [0, 1] are clamped; NaN becomes 0.
    """
    if pixels.dim() != 5 or pixels.shape[1] != 3:
        raise InputError(
            f"Pixels of shape {tuple(pixels.shape)} are not [B, 3, F, H, W].",
            "An image [B, 3, H, W] becomes a video of one frame by unsqueeze(2).",
        )
    return in_bytes(pixels).permute(0, 2, 3, 4, 1).contiguous()


def in_bytes(pixels: torch.Tensor) -> torch.Tensor:
    """Numbers in [0, 1] -> uint8, of the same shape; see `to_bytes`."""
    return (torch.nan_to_num(pixels.float()).clamp(0, 1) * 255).round().to(torch.uint8)
