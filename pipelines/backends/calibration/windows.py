"""Owns the inputs of the window part: windows of pictures that were denoised as a whole, at varied places.

Independent of recipes and engines.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from cache.features.lines import FeatureLines, WindowPlaces
from pipelines.core.parts import Part, Tensors
from pipelines.image.reuse.parts import WindowPart


@torch.no_grad()
def window_samples(part: Part, whole: Sequence[Tensors], seed: int = 0) -> list[Tensors]:
    """Return inputs of the window part. whole: those of the denoiser, with the same rows. Deterministic."""
    module, draw = part.module, random.Random(seed)
    assert isinstance(module, WindowPart), module
    size = (part.inputs["latents"].shape[2], part.inputs["latents"].shape[3])
    return [_sample(module, sample, size, draw) for sample in whole]


def _sample(module: WindowPart, whole: Tensors, size: tuple[int, int], draw: random.Random) -> Tensors:
    latents, *others = whole
    rows, height, width = latents.shape[0], *latents.shape[2:]
    x0, features = module.whole(*whole)
    lines = FeatureLines(rows, height, width, features, x0)
    every = torch.arange(rows, device=latents.device)
    lines.write(every, features, x0)
    tops, lefts = (
        torch.tensor([draw.randrange(0, length - side + 1, module.cell) for _ in range(rows)], device=latents.device)
        for length, side in ((height, size[0]), (width, size[1]))
    )
    places = WindowPlaces(line=every, row=tops, column=lefts, size=size)
    cut = torch.stack(
        [
            picture[:, top : top + size[0], left : left + size[1]]
            for picture, top, left in zip(latents, tops.tolist(), lefts.tolist(), strict=True)
        ]
    )
    return module.around((cut, *others), lines.around(places), lines.token_index(places))
