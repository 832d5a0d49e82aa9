"""Synthetic subjects that replace the sprite package, which a clean checkout does not contain."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from train.vocabulary import SUBJECTS

SIDE_PX = 40


def made_up_sprites() -> npt.NDArray[np.uint8]:
    """Return [S, 40, 40, 4] uint8 RGBA: a striped disc for each subject, in its own colour."""
    line = (np.arange(SIDE_PX) + 0.5) / SIDE_PX - 0.5
    radius = np.hypot(line[None, :], line[:, None])
    colours = np.random.default_rng(5).integers(40, 255, (len(SUBJECTS), 1, 1, 3))
    stripes = 0.6 + 0.4 * (np.sin(40 * line)[None, :, None] > 0)
    picture = np.broadcast_to(colours * stripes, (len(SUBJECTS), SIDE_PX, SIDE_PX, 3))
    alpha = np.broadcast_to(255 * (radius < 0.42)[None, :, :, None], (*picture.shape[:3], 1))
    return np.concatenate([picture, alpha], axis=3).astype(np.uint8)


@contextmanager
def made_up_pack(folder: Path) -> Iterator[Path]:
    """Write a pack of these sprites to `folder`, where benches will find it."""
    file = folder / "pack.npz"
    np.savez(file, sprites=made_up_sprites())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bench.world_clips.PACK", file)
        yield file
