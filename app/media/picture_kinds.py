"""The table of picture formats: recognises a file by its first bytes and opens it, after checks that bound what its
decoder may allocate. The decoder gets nothing that it does not need: texts and other additions are left out of a PNG.

Decodes nothing; independent of colours and of who sent the file.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from PIL import Image
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from . import heif
from .cicp import CodePoints
from .picture_error import PictureError
from .spliced import Spliced

MAX_FILE_BYTES = 256 << 20
BROKEN = (OSError, SyntaxError, ValueError, LookupError, EOFError, TypeError, ArithmeticError, RuntimeError)
BROKEN_TOO = (AttributeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError, Warning)
"""What decoders raise for damaged files; warnings, where they are errors."""

_HEAD_BYTES = 32
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"IDAT", b"fdAT", b"IEND"})
_HEADER_BYTES = 13
_CHUNK_FRAME_BYTES = 12  # length, type and CRC of a PNG chunk
_CHUNKS = 10_000  # and one for each KiB of the file
_SIDE_BYTES = 16 << 20  # of a PNG's chunks that hold no pixels
_TILE_TAGS = (322, 323)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """part_px: pixels that may be allocated for any part of a file. whole: refuse a file that is cut off right away."""

    part_px: int
    whole: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureKind:
    """A format. opened: file -> the picture, its header read.

    opened raises PictureError or one of BROKEN and BROKEN_TOO. declared: (width, height) in px as stored, from the
    file's first bytes, where opening takes memory for that size. as_video: read by the video reader instead. turned:
    its decoder turns pictures upright.
    """

    name: str
    suffixes: tuple[str, ...]
    opened: Callable[[BinaryIO, Bounds], Image.Image]
    declared: Callable[[bytes], tuple[int, int] | None] = lambda head: None
    as_video: bool = False
    turned: bool = False


def first_bytes(stream: BinaryIO) -> bytes:
    """As many as `kind_of` and `PictureKind.declared` look at."""
    stream.seek(0)
    return stream.read(_HEAD_BYTES)


def kind_of(stream: BinaryIO) -> PictureKind | None:
    """The format of an open file, by its first bytes; None if it is none of these."""
    head = first_bytes(stream)
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WEBP
    for magic, kind in _BY_MAGIC:
        if head.startswith(magic):
            return kind
    return _BY_BRAND.get(heif.brand(stream)) if head[4:8] == b"ftyp" else None


def _open_png(stream: BinaryIO, bounds: Bounds) -> Image.Image:
    """Walks the chunks (PNG specification, section 5.3): a decoder may allocate any length that a chunk declares."""
    header, exif, rest, side = (0, 0), (0, 0), [], 0
    points = None
    for kind, at, length, whole in _png_chunks(stream):
        chunk = (at - 8, length + _CHUNK_FRAME_BYTES)
        if bounds.whole and not whole:
            raise PictureError(
                "The PNG is corrupt: its chunks do not match the file size.",
                "Use the complete file, or export it again.",
            )
        if kind == b"IHDR" and length == _HEADER_BYTES:
            header = chunk
        elif kind == b"eXIf":
            exif = chunk  # may stand behind the pixels
        elif kind == b"cICP" and length == 4:
            stream.seek(at)
            points = CodePoints(primaries=stream.read(1)[0], transfer=stream.read(1)[0])
        elif kind in _PNG_KEPT:
            rest.append(chunk)
        if kind not in (b"IDAT", b"fdAT"):
            side += length if kind in _PNG_KEPT else 0
    if not header[1] or side > _SIDE_BYTES:
        raise PictureError("The PNG is corrupt: its chunks are not those of a picture.", "Export it again.")
    parts = [(0, len(_PNG_MAGIC)), header, exif, *rest]
    image = PngImageFile(io.BufferedReader(Spliced(stream, parts)))
    image.info["cicp"] = points
    return image


def _png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int, int, bool]]:
    """(kind, where its data begin, their length, whether all of it is there) of every chunk."""
    end = stream.seek(0, 2)
    at = len(_PNG_MAGIC)
    for _ in range(_CHUNKS + end // 1024):
        if at + _CHUNK_FRAME_BYTES > end:
            break
        stream.seek(at)
        length, kind = struct.unpack(">I4s", stream.read(8))
        whole = at + _CHUNK_FRAME_BYTES + length <= end
        yield kind, at + 8, length, whole
        at += _CHUNK_FRAME_BYTES + length
        if kind == b"IEND" or not whole:
            return
    yield b"", end, 0, False


def _open_webp(stream: BinaryIO, bounds: Bounds) -> Image.Image:
    """The canvas and every frame in the file (RFC 9649, section 2) fit into `part_px`."""
    data = stream.read()
    for kind, at, length in _riff_chunks(data, 12):
        _check_webp(kind, data[at : at + min(length, 64)], bounds.part_px)
        if kind == b"ANMF":
            for inner, start, size in _riff_chunks(data[at : at + length], 16):
                _check_webp(inner, data[at + start : at + start + min(size, 64)], bounds.part_px)
    return WebPImageFile(io.BytesIO(data))


def _riff_chunks(data: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    for _ in range(_CHUNKS):
        if at + 8 > len(data):
            return
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, length
        at += 8 + length + length % 2


def _declared_png(head: bytes) -> tuple[int, int] | None:
    return struct.unpack_from(">II", head, 16) if head[12:16] == b"IHDR" and len(head) >= 24 else None


def _declared_webp(head: bytes) -> tuple[int, int] | None:
    return _webp_size(head[12:16], head[20:])


def _check_webp(kind: bytes, head: bytes, part_px: int) -> None:
    check_area(*(_webp_size(kind, head) or (0, 0)), part_px)


def _webp_size(kind: bytes, head: bytes) -> tuple[int, int] | None:
    """Of a chunk that begins with `head`; None if it is not of pixels."""
    if kind == b"VP8 " and len(head) >= 10:
        width, height = struct.unpack_from("<HH", head, 6)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and len(head) >= 5:
        (bits,) = struct.unpack_from("<I", head, 1)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and len(head) >= 10:
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    return None


def _open_tiff(stream: BinaryIO, bounds: Bounds) -> Image.Image:
    image = TiffImageFile(stream)
    tile = [int(image.tag_v2.get(tag, 0)) for tag in _TILE_TAGS]
    check_area(tile[0], tile[1], bounds.part_px)
    return image


def _open_avif(stream: BinaryIO, bounds: Bounds) -> Image.Image:
    file = heif.read_file(stream)
    for width, height in heif.coded_sizes(file):
        check_area(width, height, bounds.part_px)
    stream.seek(0)
    image = AvifImageFile(stream)
    image.info["cicp"] = heif.colours_of(file, file.primary)
    return image


def _open_heic(stream: BinaryIO, bounds: Bounds) -> Image.Image:
    from .heic import HeicImage  # loads FFmpeg's libraries

    return HeicImage(stream, bounds.part_px)


def _refuse_sequence(stream: BinaryIO, bounds: Bounds) -> Image.Image:
    raise PictureError("This AVIF is a sequence of pictures.", "Give one picture, or render the file by itself.")


def check_area(width: int, height: int, max_px: int) -> None:
    """Raise PictureError for a picture of more than `max_px` pixels."""
    if width * height > max_px:
        raise PictureError(
            f"A picture of {width}x{height} px is too large.", f"Scale it down first: at most {max_px} pixels are read."
        )


JPEG = PictureKind(
    name="JPEG", suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"), opened=lambda stream, _: JpegImageFile(stream)
)
PNG = PictureKind(name="PNG", suffixes=(".png", ".apng"), opened=_open_png, declared=_declared_png)
WEBP = PictureKind(name="WebP", suffixes=(".webp",), opened=_open_webp, declared=_declared_webp)
GIF = PictureKind(name="GIF", suffixes=(".gif",), opened=lambda stream, _: GifImageFile(stream))
BMP = PictureKind(name="BMP", suffixes=(".bmp",), opened=lambda stream, _: BmpImageFile(stream))
TIFF = PictureKind(name="TIFF", suffixes=(".tif", ".tiff"), opened=_open_tiff, turned=True)
AVIF = PictureKind(name="AVIF", suffixes=(".avif", ".avifs"), opened=_open_avif)
_AVIF_SEQUENCE = PictureKind(name="AVIF sequence", suffixes=(), opened=_refuse_sequence, as_video=True)
HEIC = PictureKind(name="HEIC", suffixes=(".heic", ".heif", ".hif"), opened=_open_heic, turned=True)

_BY_MAGIC = (
    (b"\xff\xd8\xff", JPEG),
    (_PNG_MAGIC, PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"BM", BMP),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
)
_BY_BRAND = {"AVIF": AVIF, "AVIF sequence": _AVIF_SEQUENCE, "HEIC": HEIC}
SUFFIXES = frozenset(suffix for kind in (JPEG, PNG, WEBP, GIF, BMP, TIFF, AVIF, HEIC) for suffix in kind.suffixes)
"""Of the names of pictures in a folder."""
