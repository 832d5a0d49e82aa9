"""Owns the seven styles: plain, pencil sketch, pixel art, watercolour, neon lines, flat poster, night vision.

Each is a deterministic function of the picture that keeps its edges in place, so a style can be taught from photographs
as well as from rendered scenes. Lengths are given at 192 px and scale with the height. Independent of scenes and
lights.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as functional
from torch import Tensor

from .drawing import smoothstep
from .lights import axes, luminance, rgb

Style = Callable[[Tensor], Tensor]
REFERENCE_PX = 192


def _length(img: Tensor, pixels: float) -> float:
    """A length in pixels at 192 px, converted to pixels of this picture."""
    return pixels * img.shape[-2] / REFERENCE_PX


def blur(img: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of [B, C, H, W] with replicated borders; `sigma_px` in pixels of this picture."""
    radius = max(1, math.ceil(2.5 * sigma_px))
    offsets = torch.arange(-radius, radius + 1, device=img.device, dtype=img.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma_px) ** 2)
    kernel = kernel / kernel.sum()
    channels = img.shape[1]
    rows = functional.conv2d(
        functional.pad(img, (radius, radius, 0, 0), mode="replicate"),
        kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels,
    )  # fmt: skip
    return functional.conv2d(
        functional.pad(rows, (0, 0, radius, radius), mode="replicate"),
        kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels,
    )  # fmt: skip


def gradient_magnitude(img: Tensor) -> Tensor:
    """Scharr gradient magnitude of each channel of [B, C, H, W], in value per pixel."""
    smooth = torch.tensor([3.0, 10.0, 3.0], device=img.device, dtype=img.dtype) / 16
    slope = torch.tensor([-0.5, 0.0, 0.5], device=img.device, dtype=img.dtype)
    kernel = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)]).unsqueeze(1)
    b, c, h, w = img.shape
    padded = functional.pad(img.reshape(b * c, 1, h, w), (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel).square().sum(1).add(1e-8).sqrt().view(b, c, h, w)


def kuwahara(img: Tensor, radius_px: int) -> Tensor:
    """Edge-preserving smoothing [B, 3, H, W]: the mean of four quadrant windows, weighted towards the lowest variance.

    The filter of Kuwahara et al. (1976), with the soft weighting of Papari et al. (2007) instead of a hard choice.
    """
    window = radius_px + 1
    padded = functional.pad(img, (radius_px,) * 4, mode="replicate")
    means = functional.avg_pool2d(padded, window, 1)
    squares = functional.avg_pool2d(padded * padded, window, 1)
    variance = (squares - means * means).sum(1, keepdim=True).clamp(min=0)
    weight = 1 / (variance + 4e-4) ** 3
    total, norm = torch.zeros_like(img), torch.zeros_like(img[:, :1])
    height, width = img.shape[-2:]
    for top in (0, radius_px):
        for left in (0, radius_px):
            view = (slice(None), slice(None), slice(top, top + height), slice(left, left + width))
            total = total + means[view] * weight[view]
            norm = norm + weight[view]
    return total / norm


def _saturate(img: Tensor, amount: float) -> Tensor:
    luma = luminance(img)
    return (luma + (img - luma) * amount).clamp(0, 1)


def plain(img: Tensor) -> Tensor:
    """The unchanged picture."""
    return img


def pencil_sketch(img: Tensor) -> Tensor:
    """Graphite on warm white paper: dark outlines, soft shading by tone, diagonal hatching where it is dark."""
    luma = blur(luminance(img), _length(img, 0.7))
    dodge = (luma + 0.03) / (blur(luma, _length(img, 4.0)) + 0.03)
    edges = gradient_magnitude(blur(img, _length(img, 0.8))).amax(1, keepdim=True)
    lines = smoothstep(0.015, 0.13, edges) * 0.78 + 0.55 * (1 - dodge).clamp(0, 1)
    x, y = axes(img)
    aspect = img.shape[-1] / img.shape[-2]
    hatch = 0.5 + 0.5 * torch.sin((x * aspect + y) * (2 * math.pi * 27))
    tone = (1 - luma).clamp(0, 1)
    shade = 0.20 * tone + 0.34 * smoothstep(0.30, 0.85, tone) * hatch
    ink = (1 - lines.clamp(0, 1)) * (1 - shade)
    return rgb(img, 0.17, 0.17, 0.20) + ink * rgb(img, 0.80, 0.785, 0.73)


def pixel_art(img: Tensor) -> Tensor:
    """Blocks of 1/48 of the height (4 px at 192) in a palette of six levels per channel, with livelier colours."""
    height, width = img.shape[-2:]
    rows, columns = 48, max(1, round(48 * width / height))
    small = functional.interpolate(img, size=(rows, columns), mode="area")
    small = (small + 0.7 * (small - blur(small, 1.0))).clamp(0, 1)
    small = _saturate(small, 1.35)
    levels = (small * 5).round() / 5
    return functional.interpolate(levels, size=(height, width), mode="nearest")


def watercolour(img: Tensor) -> Tensor:
    """Washes of light colour on paper: edge-preserving smoothing, pigment gathered at edges, a soft uneven wash, a
    paper border fading in.
    """
    wash = kuwahara(kuwahara(img, max(1, round(_length(img, 3)))), max(1, round(_length(img, 3))))
    wash = _saturate(wash, 1.25)
    edges = blur(gradient_magnitude(wash).amax(1, keepdim=True), _length(img, 0.8))
    x, y = axes(img)
    uneven = torch.sin(x * 19 + 2.2 * torch.sin(y * 13)) * torch.sin(y * 17 + 2.0 * torch.sin(x * 11))
    pigment = (1 - wash) * (0.80 + 0.11 * uneven) + 0.9 * smoothstep(0.02, 0.22, edges) * (1.05 - wash) * 0.42
    paper = rgb(img, 0.985, 0.965, 0.92)
    border = torch.minimum(torch.minimum(x, 1 - x), torch.minimum(y, 1 - y)) + 0.012 * uneven
    return (paper * (1 - pigment * smoothstep(0.0, 0.055, border))).clamp(0, 1)


def neon_lines(img: Tensor) -> Tensor:
    """Bright coloured outlines with a glow on near-black; hue from the picture, or from the height where it is grey."""
    soft = blur(img, _length(img, 1.1))
    strength = gradient_magnitude(soft).amax(1, keepdim=True) * _length(img, 1.0)
    lines = smoothstep(0.018, 0.10, strength)
    colour = blur(img, _length(img, 2.0))
    vivid = colour - colour.amin(1, keepdim=True)
    chroma = vivid.amax(1, keepdim=True)
    vivid = vivid / (chroma + 1e-3)
    _, y = axes(img)
    turn = torch.tensor([0.0, 2.1, 4.2], device=img.device, dtype=img.dtype).view(1, 3, 1, 1)
    rainbow = 0.5 + 0.5 * torch.cos(4.0 * y + 3.6 + turn)
    mix = smoothstep(0.06, 0.22, chroma)
    tube = 0.22 + 0.78 * (rainbow + mix * (vivid - rainbow))
    lit = lines * tube
    glow = blur(lit, _length(img, 3.5))
    dark = rgb(img, 0.025, 0.015, 0.06) + 0.05 * vivid * mix
    return (1 - (1 - dark) * (1 - (lit * 0.95).clamp(0, 1)) * (1 - (glow * 0.75).clamp(0, 1))).clamp(0, 1)


def flat_poster(img: Tensor) -> Tensor:
    """Few flat, saturated tones with bold dark outlines."""
    smooth = kuwahara(kuwahara(img, max(1, round(_length(img, 3)))), max(1, round(_length(img, 2))))
    luma = luminance(smooth)
    steps = 4.0
    scaled = luma * steps
    level = (scaled.floor() + smoothstep(0.38, 0.62, scaled - scaled.floor())) / steps
    chroma = (smooth - luma) * 1.9
    flat = (0.10 + 0.88 * level + chroma).clamp(0, 1)
    flat = ((flat * 4).floor() + smoothstep(0.3, 0.7, flat * 4 - (flat * 4).floor())) / 4
    edges = gradient_magnitude(blur(smooth, _length(img, 1.2))).amax(1, keepdim=True) * _length(img, 1.0)
    outline = smoothstep(0.035, 0.085, edges)
    return flat + 0.94 * outline * (rgb(img, 0.07, 0.05, 0.12) - flat)


def night_vision(img: Tensor) -> Tensor:
    """Green phosphor: luminance under automatic gain, a glow around highlights, a vignette and faint scan lines of
    6 px.
    """
    luma = (img * rgb(img, 0.60, 0.30, 0.10)).sum(1, keepdim=True)  # intensifier tubes are most sensitive to red
    luma = luma + 1.1 * (luma - blur(luma, _length(img, 10.0)))
    luma = (luma * (0.36 / luma.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)).clamp(0.8, 3.5)).clamp(0, 1)
    gain = (luma * 1.5).clamp(min=1e-4) ** 0.75
    gain = gain / (1 + 0.22 * gain) + 0.30 * smoothstep(0.6, 1.0, blur(luma, _length(img, 4.0)))
    x, y = axes(img)
    gain = gain * (0.93 + 0.07 * torch.sin(y * (2 * math.pi * 32)))
    distance = ((x - 0.5).square() + (y - 0.5).square()).sqrt()
    gain = 0.84 * gain * (1 - 0.70 * smoothstep(0.40, 0.72, distance))
    return torch.cat([gain**2.4 * 0.55, 0.05 + 0.95 * gain, gain**2.0 * 0.45], dim=1).clamp(0, 1)


STYLE_PAINTERS: tuple[Style, ...] = (
    plain, pencil_sketch, pixel_art, watercolour, neon_lines, flat_poster, night_vision,
)  # fmt: skip
"""In the order of vocabulary_world.STYLES."""


def apply_styles(img: Tensor, style: Tensor) -> Tensor:
    """Draw each picture of img [B, 3, H, W] (0..1) in its own style [B] (int64 index into STYLES); the same shape,
    0..1.
    """
    result = img.clone()
    for index, painter in enumerate(STYLE_PAINTERS):
        rows = (style == index).nonzero().flatten()
        if rows.numel():
            result.index_copy_(0, rows, painter(img.index_select(0, rows)).clamp(0, 1))
    return result
