"""Safe decoding and encoding of pictures: the size is read from the file's header and checked before decoding.

Owns the codecs and the protection against decompression bombs. Runs on codec threads, never on the event loop.
Independent of sockets and sessions. Pictures are [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from pipelines.core.errors import InputError
from pipelines.core.types import Picture

from .stream.wire import PictureFormat

_MAX_SCANS = (
    64  # of a progressive JPEG; encoders make about 10, and each scan of a few bytes costs a pass over all pixels
)
_FULL_CHROMA_QUALITY = 90  # JPEG 4:4:4 from here on
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHUNK_FRAME_BYTES = 12  # length, type and CRC of a PNG chunk
_MAX_CHUNKS = 10_000
_WEBP_ANIMATED = 0x02
_WEBP_REMEDY = "Send a still WebP."


class PictureError(InputError):
    """Not a valid picture, or too large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Codec:
    """size: (width, height) in px, from the header only. decode: to RGB. Both raise PictureError."""

    size: Callable[[bytes], tuple[int, int]]
    decode: Callable[[bytes], Picture]


def unpack(data: bytes, form: PictureFormat, *, width: int, height: int, max_px: int) -> Picture:
    """Decode the picture [height, width, 3] in `data`.

    Raises PictureError, before anything is allocated, if it has more than `max_px` pixels or a different size.
    """
    _check_area(width, height, max_px)
    if form is PictureFormat.RGB:
        if len(data) != width * height * 3:
            raise PictureError(
                f"{len(data)} bytes are not a raw picture of {width}x{height} px.", f"Send {width * height * 3} bytes."
            )
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    codec = _CODECS[form]
    size = codec.size(data)
    if size != (width, height):
        raise PictureError(
            f"The picture has {size[0]}x{size[1]} px, but its header says {width}x{height}.", "Send its actual size."
        )
    return codec.decode(data)


def read_picture(data: bytes, *, max_px: int) -> Picture:
    """Decode a JPEG, PNG or WebP file, detected by its first bytes. Raises PictureError like `unpack`."""
    codec = next((codec for magic, codec in _BY_MAGIC if data.startswith(magic)), None)
    if codec is None:
        raise PictureError("The data is not a picture.", "Send a JPEG, PNG or WebP file.")
    _check_area(*codec.size(data), max_px)
    return codec.decode(data)


def pack(image: Picture, form: PictureFormat, quality: int) -> bytes:
    """Encode `image` as `form`; quality 1..100 for JPEG and WebP."""
    image = np.ascontiguousarray(image)
    if form is PictureFormat.RGB:
        return image.tobytes()
    if form is PictureFormat.JPEG:
        sampling = "444" if quality >= _FULL_CHROMA_QUALITY else "420"
        return bytes(simplejpeg.encode_jpeg(image, quality=quality, colorspace="RGB", colorsubsampling=sampling))
    target = io.BytesIO()
    Image.fromarray(image).save(
        target, "WEBP", quality=quality, method=0
    )  # the fastest method: 4 times as fast as the default
    return target.getvalue()


def _check_area(width: int, height: int, max_px: int) -> None:
    if width * height > max_px:
        raise PictureError(f"A picture of {width}x{height} px is too large.", f"Send at most {max_px} pixels.")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except (ValueError, KeyError) as error:  # KeyError: a colour space that simplejpeg does not support
        raise PictureError(f"This is not a JPEG ({error}).", "Send a JPEG file.") from error
    if data.count(b"\xff\xda") > _MAX_SCANS:  # these two bytes cannot occur inside a scan's data
        raise PictureError(f"The JPEG has more than {_MAX_SCANS} scans.", "Save it as a baseline JPEG.")
    return int(width), int(height)


def _jpeg_decode(data: bytes) -> Picture:
    try:
        return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"), np.uint8)
    except (ValueError, KeyError) as error:  # KeyError: a colour space that simplejpeg does not support
        raise PictureError(f"The JPEG is corrupt ({error}).", "Send the complete file.") from error


def _png_size(data: bytes) -> tuple[int, int]:
    """Walks the chunks (PNG specification, section 5.3): a decoder may allocate any length that a chunk declares."""
    if len(data) < 33 or data[:8] != _PNG_MAGIC or data[12:16] != b"IHDR":
        raise PictureError("This is not a PNG.", "Send a PNG file.")
    at = len(_PNG_MAGIC)
    for _ in range(_MAX_CHUNKS):
        if at + _CHUNK_FRAME_BYTES > len(data):
            break
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        if kind == b"acTL":
            raise PictureError("The PNG is animated.", "Send a still PNG.")
        at += _CHUNK_FRAME_BYTES + length
        if kind == b"IEND" and at <= len(data):
            width, height = struct.unpack_from(">II", data, 16)
            return int(width), int(height)
    raise PictureError("The PNG is corrupt: its chunks do not match the file size.", "Send the complete file.")


def _webp_size(data: bytes) -> tuple[int, int]:
    """For the three kinds of WebP (RFC 9649, sections 2.5 to 2.7); animated files are refused."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise PictureError("This is not a WebP.", _WEBP_REMEDY)
    kind = data[12:16]
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8X" and not data[20] & _WEBP_ANIMATED:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    raise PictureError("This kind of WebP is not supported.", _WEBP_REMEDY)


def _cv2_decode(data: bytes) -> Picture:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        image = None
    if image is None:
        raise PictureError("The picture is corrupt.", "Send the complete file.")
    return np.asarray(image, np.uint8)


_JPEG = _Codec(size=_jpeg_size, decode=_jpeg_decode)
_PNG = _Codec(size=_png_size, decode=_cv2_decode)
_WEBP = _Codec(size=_webp_size, decode=_cv2_decode)
_CODECS: Mapping[PictureFormat, _Codec] = MappingProxyType({PictureFormat.JPEG: _JPEG, PictureFormat.WEBP: _WEBP})
_BY_MAGIC = ((b"\xff\xd8\xff", _JPEG), (_PNG_MAGIC, _PNG), (b"RIFF", _WEBP))
