"""Owns the noise of chunks: a pure function of (seed, latent frame, step), drawn on the CPU so that devices agree.

Independent of noise schedules and streams. A frame's noise depends neither on its chunk nor on the rest of the batch:
takes replay exactly, and a stream of shorter chunks starts from the same noise.
"""

from __future__ import annotations

import numpy as np
import torch


def draw_noise(
    shape: tuple[int, int, int], *, seed: int, step: int, first_frame: int, frames: int, locked: bool
) -> torch.Tensor:
    """Return noise [C, frames, h, w] float32 for latent frames of shape (C, h, w).

    step: 0 for a chunk's initial noise, i for the noise added after its i-th step. first_frame: index of the first
    latent frame in its stream. locked: every frame has the noise of frame 0, so that a still picture stays still.
    """
    if locked:
        return _frame(shape, seed, step, 0)[:, None].expand(-1, frames, -1, -1)
    return torch.stack([_frame(shape, seed, step, first_frame + frame) for frame in range(frames)], dim=1)


def _frame(shape: tuple[int, int, int], seed: int, step: int, frame: int) -> torch.Tensor:
    words = np.random.SeedSequence((seed, step, frame)).generate_state(2, np.uint32)
    generator = torch.Generator().manual_seed((int(words[0]) << 31) ^ int(words[1]))
    return torch.randn(shape, generator=generator)
