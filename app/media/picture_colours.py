"""Turns decoded pictures of any mode into sRGB: colour profiles, 16-bit grey, transparency over black.

Independent of files.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

from pipelines.core.types import Picture

_BACKGROUND = (0, 0, 0, 255)
_SPACE_OF = {"RGB": "RGB ", "RGBA": "RGB ", "L": "GRAY", "CMYK": "CMYK"}


def to_rgb(image: Image.Image) -> Picture:
    """A decoded picture -> [H, W, 3] uint8 sRGB. What is transparent is black; 16-bit grey is scaled to 8 bits.

    Raises ValueError for pictures of floating-point numbers, or of another mode that has no colours.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(grey)
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    profile = image.info.get("icc_profile")
    if image.mode not in _SPACE_OF or (image.mode == "L" and not profile):
        image = image.convert("RGB")
    if profile:
        image = _to_srgb(image, profile)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, _BACKGROUND), image)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def _to_srgb(image: Image.Image, data: bytes) -> Image.Image:
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
