"""Colours that a file tells by code points (ITU-T H.273) instead of a profile: wide ones become sRGB.

Independent of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from pipelines.core.types import Picture

from .picture_error import PictureError

_HDR: Mapping[int, str] = MappingProxyType({16: "PQ", 18: "HLG"})
_TO_SRGB: Mapping[int, tuple[tuple[float, ...], ...]] = MappingProxyType(
    {
        9: ((1.660491, -0.587641, -0.072850), (-0.124550, 1.132900, -0.008349), (-0.018151, -0.100579, 1.118730)),
        12: ((1.224940, -0.224940, 0.0), (-0.042057, 1.042057, 0.0), (-0.019638, -0.078636, 1.098274)),
    }
)
"""By primaries: BT.2020 and Display P3 to those of sRGB, linear, all of white D65."""
_BAND_ROWS = 256  # converted at a time, to bound memory
_STEPS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CodePoints:
    """As H.273 numbers them."""

    primaries: int
    transfer: int


def to_srgb(image: Picture, points: CodePoints) -> Picture:
    """[H, W, 3] uint8 RGB of those colours -> of sRGB. Raises PictureError for HDR."""
    if points.transfer in _HDR:
        raise PictureError(f"The picture is HDR ({_HDR[points.transfer]}).", "Export it as SDR, for example as JPEG.")
    if points.primaries not in _TO_SRGB:
        return image
    matrix = np.array(_TO_SRGB[points.primaries], np.float32).T
    linear = _linear(np.arange(256) / 255).astype(np.float32)
    coded = np.rint(_coded(np.arange(_STEPS) / (_STEPS - 1)) * 255).astype(np.uint8)
    converted = np.empty_like(image)
    for top in range(0, image.shape[0], _BAND_ROWS):
        band = linear[image[top : top + _BAND_ROWS]] @ matrix
        converted[top : top + _BAND_ROWS] = coded[np.rint(band.clip(0, 1) * (_STEPS - 1)).astype(np.uint16)]
    return converted


def _linear(coded: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """IEC 61966-2-1."""
    return np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)


def _coded(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
