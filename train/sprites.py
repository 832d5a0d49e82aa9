"""Owns the subjects' sprites: reads the sprite package's folder, writes train/data/sprites.npz.

python -m train.sprites FOLDER    # FOLDER: assets/ of the unpacked npm package @lobehub/fluent-emoji-3d 1.1.0
"""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .vocabulary import SUBJECTS, Subject

SPRITE_SIZE_PX = 160
MARGIN_PX = 4
ALPHA_FLOOR = 8


def load_sprite(folder: Path, subject: Subject) -> npt.NDArray[np.uint8]:
    """[160, 160, 4] uint8 RGBA with straight alpha: the subject cropped to its outline, centred, with a 4 px margin."""
    path = folder / f"{subject.emoji}.webp"
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None or picture.ndim != 3 or picture.shape[2] != 4:
        raise FileNotFoundError(f"{path} is not an RGBA picture; FOLDER must be the sprite package's assets folder.")
    rows, columns = np.nonzero(picture[..., 3] > ALPHA_FLOOR)
    picture = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = (SPRITE_SIZE_PX - 2 * MARGIN_PX) / max(picture.shape[:2])
    width, height = (max(1, round(side * scale)) for side in picture.shape[1::-1])
    # Resample with premultiplied alpha, so that colours of transparent pixels do not bleed into the outline.
    alpha = picture[..., 3:].astype(np.float32) / 255
    premultiplied = np.concatenate([picture[..., :3] * alpha, alpha], axis=2)
    small = cv2.resize(premultiplied, (width, height), interpolation=cv2.INTER_AREA)
    colour = small[..., :3] / np.maximum(small[..., 3:], 1e-4)
    rgba = np.concatenate([colour[..., ::-1], 255 * small[..., 3:]], axis=2)
    canvas = np.zeros((SPRITE_SIZE_PX, SPRITE_SIZE_PX, 4), np.uint8)
    top, left = (SPRITE_SIZE_PX - height) // 2, (SPRITE_SIZE_PX - width) // 2
    canvas[top : top + height, left : left + width] = np.clip(rgba + 0.5, 0, 255)
    return canvas


def main() -> None:
    """Write train/data/sprites.npz with key `sprites` [S, 160, 160, 4] uint8, in the order of SUBJECTS."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m train.sprites FOLDER_OF_THE_SPRITE_PACKAGE")
    folder = Path(sys.argv[1])
    sprites = np.stack([load_sprite(folder, subject) for subject in SUBJECTS])
    target = Path(__file__).parent / "data" / "sprites.npz"
    target.parent.mkdir(exist_ok=True)
    np.savez_compressed(target, sprites=sprites)
    print(f"{len(sprites)} sprites, {target.stat().st_size / 2**20:.1f} MiB: {target}")


if __name__ == "__main__":
    main()
