"""HEIC pictures, as phones make them: a grid of HEVC pictures, turned. Decodes the whole picture, not its first tile.

Depends on the boxes (heif.py) and on FFmpeg's HEVC decoder. A picture of Pillow's kind: read lazily.
"""

from __future__ import annotations

import struct
from fractions import Fraction
from typing import Any, BinaryIO

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from PIL import Image, ImageFile

from pipelines.core.types import Picture

from .heif import HeifFile, colours_of, grid_of, read_file
from .picture_error import PictureError

_REMEDY = "Save it as JPEG or PNG: with Export in Apple's Preview or Photos, or `heif-convert in.heic out.jpg`."
_ALPHA = (b"urn:mpeg:hevc:2015:auxid:1", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha")
_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_UNKNOWN_RANGE = 0  # AVCOL_RANGE_UNSPECIFIED


class HeicImage(ImageFile.ImageFile):
    """The primary picture of a file, upright. Its size is known when it is opened; `load` decodes it."""

    format = "HEIC"

    def __init__(self, stream: BinaryIO, max_px: int) -> None:
        """max_px: of one tile: the decoder refuses a larger one."""
        self._max_px = max_px
        super().__init__(stream)

    def _open(self) -> None:
        assert self.fp is not None
        self._file = read_file(self.fp)  # type: ignore[arg-type]
        self._number = self._file.primary
        item = self._file.items.get(self._number)
        if item is None or item.kind not in (b"hvc1", b"grid"):
            found = "nothing" if item is None else repr(item.kind.decode("latin-1"))
            raise PictureError(f"The HEIC's main picture is of a kind that is not read ({found}).", _REMEDY)
        size = grid_of(item.data)[2:] if item.kind == b"grid" else _declared_size(self._file, self._number)
        self._stored_size = size
        self._properties = self._file.properties.get(self._number, [])
        self._size = _shown_size(size, self._properties)
        self._alpha = _alpha_of(self._file, self._number)
        self._mode = "RGB" if self._alpha is None else "RGBA"
        for kind, content in self._properties:
            if kind == b"colr" and content[:4] in (b"prof", b"rICC"):
                self.info["icc_profile"] = content[4:]
        self.info["cicp"] = colours_of(self._file, self._number)
        self._decoded: Image.Image | None = None

    def load(self) -> Any:
        """Decode it. Raises ValueError."""
        if self._decoded is None:
            stored = _decoded(self._file, self._number, self._stored_size, self._max_px)
            if self._alpha is not None:
                alpha = _decoded(self._file, self._alpha, self._stored_size, self._max_px)
                if alpha.shape != stored.shape:
                    raise ValueError("its transparency has another size")
                stored = np.concatenate([stored, alpha[..., :1]], axis=2)
            self._decoded = Image.fromarray(_shown(stored, self._properties))
            self._im = self._decoded.im
        return Image.Image.load(self)


def _alpha_of(file: HeifFile, number: int) -> int | None:
    """The picture that holds the transparency of another one."""
    for (kind, source), targets in file.references.items():
        if kind == b"auxl" and number in targets:
            told = next((content for name, content in file.properties.get(source, []) if name == b"auxC"), b"")
            if told[4:].rstrip(b"\0").startswith(_ALPHA):
                return source
    return None


def _declared_size(file: HeifFile, number: int) -> tuple[int, int]:
    for kind, content in file.properties.get(number, []):
        if kind == b"ispe" and len(content) >= 12:
            return int.from_bytes(content[4:8], "big"), int.from_bytes(content[8:12], "big")
    raise ValueError("its main picture has no size")


def _decoded(file: HeifFile, number: int, size: tuple[int, int], max_px: int) -> Picture:
    """[H, W, 3] uint8 RGB, as stored."""
    width, height = size
    if file.items[number].kind == b"hvc1":
        return _tile(file, number, max_px)[:height, :width]
    rows, columns, _, _ = grid_of(file.items[number].data)
    tiles = file.references.get((b"dimg", number), [])
    if len(tiles) != rows * columns:
        raise ValueError(f"its grid has {len(tiles)} of {rows * columns} tiles")
    canvas = np.zeros((height, width, 3), np.uint8)
    step: tuple[int, int] | None = None
    for place, tile in enumerate(tiles):
        image = _tile(file, tile, max_px)
        step = step or image.shape[:2]
        if step[0] * (rows - 1) >= height or step[1] * (columns - 1) >= width:
            raise ValueError("its grid has more tiles than the picture needs")
        top, left = place // columns * step[0], place % columns * step[1]
        part = canvas[top : top + step[0], left : left + step[1]]
        if image.shape[0] < part.shape[0] or image.shape[1] < part.shape[1]:
            raise ValueError("its tiles differ in size")
        part[:] = image[: part.shape[0], : part.shape[1]]
    if step is None or step[0] * rows < height or step[1] * columns < width:
        raise ValueError("its tiles do not cover the picture")
    return canvas


def _tile(file: HeifFile, number: int, max_px: int) -> Picture:
    item = file.items.get(number)
    config = next((content for kind, content in file.properties.get(number, []) if kind == b"hvcC"), None)
    if item is None or item.kind != b"hvc1" or config is None:
        raise ValueError("a tile is missing")
    decoder = av.VideoCodecContext.create("hevc", "r")
    decoder.extradata = config
    decoder.options = {"max_pixels": str(max_px)}
    try:
        frames = [*decoder.decode(av.Packet(item.data)), *decoder.decode(None)]
    except av.error.FFmpegError as error:
        raise ValueError(f"a tile cannot be decoded: {error.strerror}") from error
    if not frames:
        raise ValueError("a tile has no picture")
    frame = frames[0]
    told = next(
        (content for kind, content in file.properties[number] if kind == b"colr" and content[:4] == b"nclx"), b""
    )
    full = frame.color_range == _UNKNOWN_RANGE or (len(told) > 10 and bool(told[10] & 128))
    converted = VideoReformatter().reformat(
        frame,
        format="rgb24",
        src_colorspace=Colorspace.ITU601 if frame.colorspace == _UNSPECIFIED else None,
        src_color_range=ColorRange.JPEG if full else None,
    )
    return np.asarray(converted.to_ndarray(), np.uint8)


def _shown_size(size: tuple[int, int], properties: list[tuple[bytes, bytes]]) -> tuple[int, int]:
    """(width, height) in px after what `_shown` does."""
    for kind, content in properties:
        if kind == b"clap":
            left, top, right, bottom = _aperture(size, content)
            size = (right - left, bottom - top)
        elif kind == b"irot" and content[0] & 1:
            size = (size[1], size[0])
    return size


def _shown(stored: Picture, properties: list[tuple[bytes, bytes]]) -> Picture:
    """Crop, turn and mirror, in the file's order."""
    for kind, content in properties:
        if kind == b"clap":
            left, top, right, bottom = _aperture((stored.shape[1], stored.shape[0]), content)
            stored = stored[top:bottom, left:right]
        elif kind == b"irot":
            stored = np.rot90(stored, content[0] & 3)  # anti-clockwise
        elif kind == b"imir":
            stored = stored[:, ::-1] if content[0] & 1 else stored[::-1]
    return np.ascontiguousarray(stored)


def _aperture(size: tuple[int, int], content: bytes) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a clean aperture, in px: the part of the picture to show."""
    numbers = struct.unpack(">IIIIiIiI", content)
    width, height, across, down = (Fraction(*numbers[at : at + 2]) for at in range(0, 8, 2))
    left = round(across + Fraction(size[0] - 1, 2) - (width - 1) / 2)
    top = round(down + Fraction(size[1] - 1, 2) - (height - 1) / 2)
    right, bottom = left + round(width), top + round(height)
    if not (0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]):
        raise ValueError("its clean aperture lies outside the picture")
    return left, top, right, bottom
