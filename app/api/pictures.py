"""Pictures as clients send and get them: decoded by the one reader of picture files, with the limits of the server.

Runs on codec threads, never on the event loop. Independent of sockets and sessions. Pictures are [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from app.media.picture_error import PictureError
from app.media.picture_file import read_still
from app.media.picture_kinds import JPEG, WEBP, PictureKind, check_area
from pipelines.core.types import Picture

from .stream.wire import PictureFormat

__all__ = ["PictureError", "pack", "read_picture", "unpack"]

_FULL_CHROMA_QUALITY = 90  # JPEG 4:4:4 from here on
_KINDS: Mapping[PictureFormat, PictureKind] = MappingProxyType({PictureFormat.JPEG: JPEG, PictureFormat.WEBP: WEBP})


def unpack(data: bytes, form: PictureFormat, *, width: int, height: int, max_px: int) -> Picture:
    """Decode the picture in `data`: [height, width, 3], or [width, height, 3] if the file says that it is turned.

    Raises PictureError, before anything is allocated, if it has more than `max_px` pixels or a different size.
    """
    check_area(width, height, max_px)
    if form is PictureFormat.RGB:
        if len(data) != width * height * 3:
            raise PictureError(
                f"{len(data)} bytes are not a raw picture of {width}x{height} px.", f"Send {width * height * 3} bytes."
            )
        return np.frombuffer(data, np.uint8).reshape(height, width, 3)
    return read_still(data, max_px=max_px, kinds=(_KINDS[form],), announced=(width, height))


def read_picture(data: bytes, *, max_px: int) -> Picture:
    """Decode a JPEG, PNG or WebP file, detected by its first bytes. Raises PictureError like `unpack`."""
    return read_still(data, max_px=max_px)


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
