"""Owns how source pictures become photographs: reads them from unpacked packages, cuts training and test crops.

python -m train.photos FOLDER    # FOLDER/<package name, / as +>/ holds each unpacked package (train.collect makes it)

Writes train/data/photos.npz (JPEG bytes and offsets) and assets/samples/photos/.
"""

from __future__ import annotations

import base64
import random
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from pipelines.core.types import Picture

from .pack import Bytes, encode_jpeg, join
from .panorama import read_exr, tone_map, view
from .photo_table import PHOTOS, Photo

TRAIN_SIDE_PX = 368
TEST_SIDE_PX = 256
SMALLEST_SOURCE_PX = 200
LARGE_SOURCE_PX = 1000
CROP_SCALES = ((1.0, 3), (0.6, 9), (0.35, 15))
"""(side of a training crop as a share of the picture's short side, how many crops) for large pictures."""


def package_folder(root: Path, package: str) -> Path:
    """The folder of an unpacked package."""
    return root / package.replace("/", "+")


def read_rcc(data: bytes) -> dict[str, bytes]:
    """All files of a Qt binary resource; zlib-compressed ones are unpacked, zstd ones omitted."""
    if data[:4] != b"qres":
        raise ValueError("not a Qt binary resource: it does not begin with 'qres'")
    version, tree, content, names = struct.unpack(">4I", data[4:20])
    row_bytes = 22 if version >= 2 else 14
    files: dict[str, bytes] = {}

    def walk(row: int, folder: str) -> None:
        at = tree + row * row_bytes
        name_at, flags = struct.unpack(">IH", data[at : at + 6])
        length = struct.unpack(">H", data[names + name_at : names + name_at + 2])[0]
        name = data[names + name_at + 6 : names + name_at + 6 + 2 * length].decode("utf-16-be") if row else ""
        path = f"{folder}/{name}".lstrip("/")
        if flags & 2:
            count, first = struct.unpack(">II", data[at + 6 : at + 14])
            for child in range(first, first + count):
                walk(child, path)
        elif not flags & 4:
            start = content + struct.unpack(">I", data[at + 10 : at + 14])[0]
            size = struct.unpack(">I", data[start : start + 4])[0]
            body = data[start + 4 : start + 4 + size]
            files[path] = zlib.decompress(body[4:]) if flags & 1 else body

    walk(0, "")
    return files


def read_bytes(root: Path, photo: Photo) -> bytes:
    """The picture file's bytes; `a.rcc:b` is b inside a Qt resource, `.exr.js` is base64 in a JavaScript module."""
    outer, _, inner = photo.path.partition(":")
    path = package_folder(root, photo.package) / outer
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run `python -m train.collect` to download {photo.package}")
    data = path.read_bytes()
    if inner:
        return read_rcc(data)[inner]
    if outer.endswith(".js"):
        found = re.search(rb"base64,([A-Za-z0-9+/=]+)", data)
        assert found is not None, f"{path} holds no base64 data"
        return base64.b64decode(found.group(1))
    return data


def read_picture(root: Path, photo: Photo) -> Picture:
    """uint8 RGB [H, W, 3]; panoramas are tone-mapped."""
    data = read_bytes(root, photo)
    if photo.panorama:
        return tone_map(read_exr(data))
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{photo.path} of {photo.package} is not a picture that OpenCV can read")
    if min(picture.shape[:2]) < SMALLEST_SOURCE_PX:
        raise ValueError(f"{photo.path} is {picture.shape[1]}x{picture.shape[0]} px; {SMALLEST_SOURCE_PX} are needed")
    return np.ascontiguousarray(picture[..., ::-1], dtype=np.uint8)


def resize(picture: Picture, width: int, height: int) -> Picture:
    """Resize by area averaging (down) or Lanczos (up)."""
    how = cv2.INTER_AREA if width < picture.shape[1] else cv2.INTER_LANCZOS4
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), dtype=np.uint8)


def square(picture: Picture, left: float, top: float, side: float, size_px: int) -> Picture:
    """The square crop at (left, top), resized to size_px."""
    x, y, s = round(left), round(top), int(side)
    return resize(np.ascontiguousarray(picture[y : y + s, x : x + s]), size_px, size_px)


def test_pieces(picture: Picture, photo: Photo) -> Iterator[Picture]:
    """photo.crops non-overlapping pieces [256, 256, 3]: along the long side, or around the panorama."""
    if photo.panorama:
        for i in range(photo.crops):
            yield view(
                picture, yaw_deg=360 * i / photo.crops, pitch_deg=-6, field_deg=360 / 5 - 2, size_px=TEST_SIDE_PX
            )
        return
    height, width = picture.shape[:2]
    if photo.crops == 4:
        side = min(height, width) / 2
        for i in range(4):
            yield square(picture, (width / 2 - side) + side * (i % 2), (height / 2 - side) + side * (i // 2), side, 256)
        return
    side = min(min(height, width), max(height, width) / photo.crops)
    for i in range(photo.crops):
        step = (i + 0.5) / photo.crops
        left = width * step - side / 2 if width >= height else (width - side) / 2
        top = height * step - side / 2 if height > width else (height - side) / 2
        yield square(picture, left, top, side, TEST_SIDE_PX)


def panorama_pieces(picture: Picture, rng: random.Random) -> Iterator[Picture]:
    """Views in all directions: sharper panoramas give more and narrower ones."""
    fine = picture.shape[1] >= 1024
    count, field_deg = (16, 72.0) if fine else (5, 92.0)
    for i in range(count):
        yield view(
            picture,
            yaw_deg=360 * (i + rng.random() * 0.5) / count,
            pitch_deg=rng.uniform(-16, 10),
            field_deg=field_deg + rng.uniform(-6, 6),
            size_px=320,
        )


def train_pieces(picture: Picture, photo: Photo, rng: random.Random) -> Iterator[Picture]:
    """Small pictures whole, large ones as overlapping crops at three scales, panoramas as views."""
    if photo.panorama:
        yield from panorama_pieces(picture, rng)
        return
    height, width = picture.shape[:2]
    short = min(height, width)
    scale = min(1.0, 384 / short)
    yield resize(picture, round(width * scale), round(height * scale)) if scale < 1 else picture
    for share, count in CROP_SCALES:
        side = share * short
        if side >= TRAIN_SIDE_PX and short >= LARGE_SOURCE_PX:
            for _ in range(count):
                yield square(picture, rng.uniform(0, width - side), rng.uniform(0, height - side), side, TRAIN_SIDE_PX)


def cut(root: Path) -> tuple[list[Bytes], list[tuple[Photo, Bytes]]]:
    """(training JPEGs, test JPEGs with their sources) from the packages under root; deterministic."""
    train: list[Bytes] = []
    test: list[tuple[Photo, Bytes]] = []
    for photo in PHOTOS:
        picture = read_picture(root, photo)
        if photo.crops:
            test += [(photo, encode_jpeg(piece)) for piece in test_pieces(picture, photo)]
        else:
            rng = random.Random(f"{photo.package}:{photo.path}")
            train += [encode_jpeg(piece) for piece in train_pieces(picture, photo, rng)]
    return train, test


def test_sources() -> list[Photo]:
    """The source of assets/samples/photos/<i>.jpg, by i."""
    return [photo for photo in PHOTOS for _ in range(photo.crops)]


def main() -> None:
    """Cut all crops; write train/data/photos.npz and assets/samples/photos/."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m train.photos FOLDER_OF_UNPACKED_PACKAGES")
    project = Path(__file__).parent.parent
    train, test = cut(Path(sys.argv[1]))
    samples = project / "assets" / "samples" / "photos"
    samples.mkdir(parents=True, exist_ok=True)
    for i, (_, jpeg) in enumerate(test):
        (samples / f"{i:02d}.jpg").write_bytes(jpeg.tobytes())
    data, offsets = join(train)
    held, held_offsets = join([jpeg for _, jpeg in test])
    target = project / "train" / "data" / "photos.npz"
    target.parent.mkdir(exist_ok=True)
    np.savez(target, photo_train=data, photo_train_offsets=offsets, photo_test=held, photo_test_offsets=held_offsets)
    print(f"{len(train)} training pictures, {len(data) / 2**20:.1f} MiB; {len(test)} test pictures: {target}")


if __name__ == "__main__":
    main()
