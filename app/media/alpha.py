"""Videos with transparency: the decoders that keep it, and what they give over black, as for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import av
import numpy as np
import numpy.typing as npt

_KEEPING: Mapping[str, str] = MappingProxyType({"vp8": "libvpx", "vp9": "libvpx-vp9"})
"""Codec -> the decoder that reads the alpha that WebM has beside the pictures; the usual one leaves it out."""


def decoder_of(stream: av.VideoStream, max_px: int) -> av.VideoCodecContext:
    """The decoder of a stream. It refuses frames of more than `max_px` pixels, whatever size the file declares."""
    decoder = stream.codec_context
    name = _KEEPING.get(decoder.name)
    if name is not None and stream.metadata.get("alpha_mode") == "1":
        decoder = av.VideoCodecContext.create(name, "r")
        decoder.extradata = stream.codec_context.extradata
        decoder.thread_type = stream.thread_type
    decoder.options = {**decoder.options, "max_pixels": str(max_px)}
    return decoder


def over_black(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """[H, W, 4] uint8 RGBA, not premultiplied -> [H, W, 3] uint8 RGB."""
    alpha = image[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(image[..., :3])
    shown = image[..., :3].astype(np.uint16) * alpha + 127
    return (shown // 255).astype(np.uint8)
