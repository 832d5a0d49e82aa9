"""Turns decoded pictures of any mode into sRGB: colour profiles, 16-bit grey, transparency over black.

Independent of files.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from pipelines.core.types import Picture

from .cicp import to_srgb
from .picture_error import PictureError

_BACKGROUND = (0, 0, 0, 255)
_SPACE_OF = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def to_rgb(image: Image.Image) -> Picture:
    """A decoded picture -> [H, W, 3] uint8 sRGB. What is transparent is black; 16-bit grey is scaled to 8 bits.

    image.info: `icc_profile`, bytes; else `cicp`, CodePoints. Raises PictureError for HDR and for pictures of
    floating-point numbers, ValueError for another mode that has no colours.
    """
    if image.mode == "F":
        raise PictureError("The picture's pixels are floating-point numbers.", "Save it with 8 or 16 bits per colour.")
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    profile = image.info.get("icc_profile")
    if image.mode not in _SPACE_OF or (image.mode == "L" and not profile):
        image = image.convert("RGB")
    points = image.info.get("cicp")
    if profile:
        image = _by_profile(image, profile)
    elif points is not None:
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        image = Image.fromarray(to_srgb(np.asarray(image.convert("RGB")), points))
        if alpha is not None:
            image.putalpha(alpha)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _by_profile(image: Image.Image, data: bytes) -> Image.Image:
    """As players and browsers do, a profile that is damaged or of other colours than the picture's is ignored."""
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        if "sRGB" in (profile.profile.profile_description or ""):
            return image
        if profile.profile.xcolor_space == "RGB " and image.mode == "L":
            image = image.convert("RGB")
        if profile.profile.xcolor_space != _SPACE_OF[image.mode]:
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image
    assert converted is not None
    return converted
