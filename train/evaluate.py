"""Owns the metrics of generated pictures: recognised subject, place and style, edge correlation, sheets.

Shared by training and bench.mini_image; the generators are plain functions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .captions import canonical_caption, caption
from .classifier import Classifier, labels, predict
from .lights import luminance
from .styles import gradient_magnitude
from .vocabulary_world import STYLES
from .world import SceneSpec, sample_specs

Generate = Callable[[list[str], int], Tensor]
"""Pictures [B, 3, 192, 192] in 0..1 from captions and a number of steps."""
Translate = Callable[[Tensor, list[str], int], Tensor]
"""Pictures [B, 3, 192, 192] in 0..1 from pictures, captions and a number of steps, at strength 0.5."""


def held_out_captions(count: int, subjects: int, seed: int = 99) -> tuple[SceneSpec, list[str]]:
    """count held-out combinations (on the CPU), each with a caption in a random wording."""
    spec = sample_specs(count, torch.Generator().manual_seed(seed), torch.device("cpu"), True, subjects=subjects)
    rng = random.Random(seed)
    return spec, [caption(s, p, light, y, rng) for s, p, light, y in torch.stack(spec, 1).tolist()]


def recognition(truth: Tensor, predicted: Tensor) -> dict[str, float]:
    """Share of pictures whose subject, place and style are recognised; truth and predicted: int64 [B, 3]."""
    shares = (truth == predicted).double().mean(0).tolist()
    return dict(zip(("subject", "place", "style"), shares, strict=True))


def score_captions(
    classifier: Classifier, generate: Generate, spec: SceneSpec, captions: list[str], steps: int, chunk: int
) -> tuple[dict[str, float], Tensor]:
    """(recognition rates, first chunk of pictures) for pictures generated from captions."""
    device = next(classifier.parameters()).device
    found, first = [], torch.empty(0)
    for start in range(0, len(captions), chunk):
        pictures = generate(captions[start : start + chunk], steps)
        found.append(predict(classifier, pictures.to(device).float()).cpu())
        first = pictures if start == 0 else first
    return recognition(labels(spec), torch.cat(found)), first


def edge_map(pictures: Tensor) -> Tensor:
    """Gradient magnitude of luma, blurred over 5 pixels to tolerate edge shifts of a pixel or two: [B, H * W]."""
    edges = gradient_magnitude(luminance(pictures.float()))
    return functional.avg_pool2d(edges, 5, stride=1, padding=2, count_include_pad=False).flatten(1)


def edge_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation of the edge maps of picture pairs [B, 3, H, W] in 0..1: [B]."""
    x, y = edge_map(a), edge_map(b)
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return functional.cosine_similarity(x, y, dim=1)


def square_photos(photos: Sequence[np.ndarray], size: int) -> Tensor:
    """Centre squares of uint8 [h, w, 3] photographs resized by area: [N, 3, size, size] in 0..1."""
    squares = []
    for photo in photos:
        side = min(photo.shape[:2])
        top, left = (photo.shape[0] - side) // 2, (photo.shape[1] - side) // 2
        part = np.ascontiguousarray(photo[top : top + side, left : left + side])
        squares.append(cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA))
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 255


def score_photos(
    classifier: Classifier, translate: Translate, photos: Tensor, steps: int, chunk: int
) -> tuple[dict[str, float], Tensor]:
    """(edge correlation and recognition rates of styles, over photos x drawing styles; all pictures, by style)."""
    device = next(classifier.parameters()).device
    edges, hits, kept = [], [], []
    result: dict[str, float] = {}
    for style in range(1, len(STYLES)):
        text = canonical_caption(-1, -1, 0, style, photo=True)
        parts = [translate(part, [text] * part.shape[0], steps).float().cpu() for part in torch.split(photos, chunk)]
        pictures = torch.cat(parts)
        edges.append(edge_correlation(pictures, photos.cpu()))
        hits.append(predict(classifier, pictures.to(device))[:, 2].cpu() == style)
        kept.append(pictures)
        result[f"style_{STYLES[style].name.replace(' ', '_')}"] = float(hits[-1].double().mean())
    result["edge_correlation"] = float(torch.cat(edges).mean())
    result["style"] = float(torch.cat(hits).double().mean())
    return result, torch.stack(kept)


def sheet(rows: Sequence[Tensor], file: Path, *, quality: int = 88) -> None:
    """Write rows of pictures [N, 3, H, W] in 0..1 as one JPEG or PNG, one row per tensor."""
    lines = [torch.cat(list(row.float().cpu().clamp(0, 1)), 2) for row in rows]
    width = max(line.shape[2] for line in lines)
    lines = [functional.pad(line, (0, width - line.shape[2])) for line in lines]
    picture = (torch.cat(lines, 1).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    cv2.imwrite(str(file), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
