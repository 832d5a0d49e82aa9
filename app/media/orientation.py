"""Turns and mirrors a decoded picture as its display matrix says. Independent of files and colours."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

import av
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type

_ENTRIES = struct.Struct("=9i")


@dataclass(frozen=True, slots=True, kw_only=True)
class Orientation:
    """One of the eight ways to lay a picture: first exchange its axes, then flip them."""

    transposed: bool = False
    flips_columns: bool = False
    flips_rows: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Self:
        """That of the frame's display matrix, to the nearest quarter turn; upright without one."""
        for data in frame.side_data:
            if data.type == Type.DISPLAYMATRIX:
                return cls.from_matrix(_ENTRIES.unpack(bytes(data)[: _ENTRIES.size]))
        return cls()

    @classmethod
    def from_matrix(cls, matrix: tuple[int, ...]) -> Self:
        """matrix: (a, b, u, c, d, v, x, y, w) of ISO/IEC 14496-12, 8.3.2: a stored point (p, q) is shown at
        (a p + c q + x, b p + d q + y)."""
        a, b, _, c, d, *_ = matrix
        if abs(b) + abs(c) > abs(a) + abs(d):
            return cls(transposed=True, flips_columns=c < 0, flips_rows=b < 0)
        return cls(flips_columns=a < 0, flips_rows=d < 0)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) as shown, of a stored picture."""
        return (height, width) if self.transposed else (width, height)

    def apply(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """image: [H, W, 3] as stored -> as shown, C-contiguous."""
        if self.transposed:
            image = image.swapaxes(0, 1)
        if self.flips_columns:
            image = image[:, ::-1]
        if self.flips_rows:
            image = image[::-1]
        return np.ascontiguousarray(image)
