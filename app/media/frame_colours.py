"""Converts decoded frames to RGB pictures, upright, by their colour tags. Independent of files and times."""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from pipelines.core.errors import InputError

from .alpha import over_black
from .orientation import Orientation
from .tone_map import Colours, Table, ToneMap, table

_UNSPECIFIED = 2  # AVCOL_SPC_UNSPECIFIED
_HD_ROWS = 720  # untagged video is BT.709 from here on, BT.601 below: what players assume
_SCALER = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


def check_base(frame: av.VideoFrame, name: str) -> None:
    """Raise InputError for Dolby Vision of profile 5, whose colours only its own metadata explain."""
    dolby = any(data.type in (Type.DOVI_METADATA, Type.DOVI_RPU_BUFFER) for data in frame.side_data)
    if dolby and frame.color_trc == frame.colorspace == _UNSPECIFIED:
        raise InputError(
            f"{name} is Dolby Vision without a base in HDR10 or HLG (profile 5).",
            "Export it as HDR10, HLG or SDR first.",
        )


class ToRgb:
    """Converts frames with reused converters. Not thread-safe."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()
        self._from_table = VideoReformatter()
        self._alpha = VideoReformatter()
        self._tables: dict[Colours, Table] = {}
        self._tone_map: ToneMap | None = None
        self._mapped: tuple[Colours, int, int] | None = None

    def __call__(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        """[H, W, 3] uint8 full-range RGB of Rec.709, upright, black where transparent.

        Untagged matrix: BT.2020 for HDR, else BT.709 from 720 rows on, else BT.601.
        """
        shown = self._opaque(frame)
        if _has_alpha(frame):
            alpha = self._alpha.reformat(frame, format="rgba").to_ndarray()[..., 3:]
            shown = over_black(np.concatenate([shown, alpha], axis=-1))
        return Orientation.of(frame).apply(shown)

    def _opaque(self, frame: av.VideoFrame) -> npt.NDArray[np.uint8]:
        colours = Colours.of(frame)
        matrix = _matrix(frame, colours)
        if colours.plain:
            rgb = self._reformatter.reformat(frame, format="rgb24", src_colorspace=matrix, interpolation=_SCALER)
        else:
            deep = self._reformatter.reformat(
                frame,
                format="rgb48le",
                src_colorspace=matrix,
                dst_color_range=ColorRange.JPEG,
                interpolation=_SCALER,
            )
            rgb = self._from_table.reformat(self._tone_map_for(colours, frame)(deep), format="rgb24")
        return np.asarray(rgb.to_ndarray(), np.uint8)

    def _tone_map_for(self, colours: Colours, frame: av.VideoFrame) -> ToneMap:
        wanted = colours, frame.width, frame.height
        if self._tone_map is None or self._mapped != wanted:
            if colours not in self._tables:
                self._tables[colours] = table(colours)
            self._tone_map = ToneMap(self._tables[colours], frame.width, frame.height)
            self._mapped = wanted
        return self._tone_map


def _has_alpha(frame: av.VideoFrame) -> bool:
    return bool(frame.format.has_palette) or any(component.is_alpha for component in frame.format.components)


def _matrix(frame: av.VideoFrame, colours: Colours) -> Colorspace | None:
    """The matrix to assume where the frame does not name one."""
    if frame.colorspace != _UNSPECIFIED:
        return None
    if not colours.plain:
        return Colorspace(Colorspace.BT2020)
    return Colorspace(Colorspace.ITU709) if frame.height >= _HD_ROWS else None
