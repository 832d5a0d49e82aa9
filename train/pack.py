"""Owns the format of train/data/pack.npz: the subject sprites and the photographs that training reads.

Photographs are stored as concatenated JPEG bytes with offsets: no pickle; NumPy and OpenCV are enough to read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


class PackError(ValueError):
    """pack.npz is missing, incomplete or damaged; the message says how to rebuild it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pack:
    """The training data. sprites: uint8 [S, 160, 160, 4] RGBA, straight alpha; photographs: JPEG byte arrays."""

    sprites: Bytes
    photo_train: list[Bytes]
    photo_test: list[Bytes]

    @staticmethod
    def decode(jpeg: Bytes) -> Bytes:
        """uint8 RGB [H, W, 3] of one stored photograph. Raises PackError if it is not a JPEG."""
        picture = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
        if picture is None:
            raise PackError(f"{len(jpeg)} bytes that are not a JPEG; run `python -m train.collect` again.")
        return np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)


def encode_jpeg(rgb: Bytes, quality: int = 92) -> Bytes:
    """JPEG bytes (uint8 [n]) of a uint8 RGB picture [H, W, 3]."""
    done, jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV always encodes a uint8 RGB picture"
    return np.asarray(jpeg, dtype=np.uint8).reshape(-1)


def join(parts: Sequence[Bytes]) -> tuple[Bytes, npt.NDArray[np.int64]]:
    """(all bytes concatenated, int64 offsets [n + 1]): part i is data[offsets[i]:offsets[i + 1]]."""
    offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
    return (np.concatenate(parts) if parts else np.zeros(0, np.uint8)), offsets


def split(data: Bytes, offsets: npt.NDArray[np.int64]) -> list[Bytes]:
    """The inverse of join."""
    return [data[start:end] for start, end in pairwise(offsets.tolist())]


def save_pack(path: Path, pack: Pack) -> None:
    """Write the pack atomically."""
    train, train_offsets = join(pack.photo_train)
    test, test_offsets = join(pack.photo_test)
    unfinished = path.with_name(path.stem + ".part.npz")
    np.savez_compressed(
        unfinished,
        sprites=pack.sprites,
        photo_train=train,
        photo_train_offsets=train_offsets,
        photo_test=test,
        photo_test_offsets=test_offsets,
    )
    unfinished.replace(path)


def load_pack(path: str | Path) -> Pack:
    """Read pack.npz. Raises PackError if it is missing or incomplete."""
    if not Path(path).is_file():
        raise PackError(f"{path} does not exist; run `python -m train.collect` to make it.")
    with np.load(path, allow_pickle=False) as stored:
        needed = {"sprites", "photo_train", "photo_train_offsets", "photo_test", "photo_test_offsets"}
        if lacking := needed - set(stored.files):
            raise PackError(f"{path} lacks {', '.join(sorted(lacking))}; run `python -m train.collect` again.")
        return Pack(
            sprites=stored["sprites"],
            photo_train=split(stored["photo_train"], stored["photo_train_offsets"]),
            photo_test=split(stored["photo_test"], stored["photo_test_offsets"]),
        )
