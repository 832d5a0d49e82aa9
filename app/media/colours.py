"""Converts RGB pictures for every encoder: YUV 4:2:0, BT.709, limited range, and tagged as such."""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter


class ToYuv:
    """Converts pictures with one reused converter. Not thread-safe."""

    def __init__(self) -> None:
        self._converter = VideoReformatter()

    def __call__(self, image: npt.NDArray[np.uint8]) -> av.VideoFrame:
        """image: [H, W, 3] uint8 RGB, H and W even. The frame has no timestamp."""
        return self._converter.reformat(
            av.VideoFrame.from_ndarray(image, format="rgb24"),
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            dst_color_trc=ColorTrc.BT709,
            dst_color_primaries=ColorPrimaries.BT709,
        )
