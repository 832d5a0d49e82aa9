"""Owns sheets of rolled-out frames: selecting frames from passing streams, and writing them to one PNG.

For visual inspection, not for measuring. Needs only zlib.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bench.video_quality import FRAME_RATE


class Keeper:
    """Passes pieces on, and keeps frames of the first streams at the given seconds."""

    def __init__(self, seconds: Sequence[float], streams: int) -> None:
        self._wanted = [round(second * FRAME_RATE) for second in seconds]
        self._streams = streams
        self._kept: list[Tensor] = []

    def passing(self, pieces: Iterable[Tensor]) -> Iterator[Tensor]:
        """The same pieces, uint8 [N, F, H, W, 3]."""
        first = 0
        for piece in pieces:
            for index in self._wanted:
                if first <= index < first + piece.shape[1]:
                    self._kept.append(piece[: self._streams, index - first].cpu())
            first += piece.shape[1]
            yield piece

    def sheet(self) -> Tensor:
        """A row per stream: uint8 [H, W, 3]. Raises ValueError if nothing was kept."""
        if not self._kept:
            raise ValueError("no frame was kept: the streams were shorter than the first second to keep")
        rows = torch.stack(self._kept, 1)  # [streams, columns, h, w, 3]
        return rows.permute(0, 2, 1, 3, 4).flatten(2, 3).flatten(0, 1)


def write_png(picture: Tensor, file: Path) -> None:
    """Write picture, uint8 [H, W, 3]."""
    height, width, _ = picture.shape
    raw = b"".join(b"\0" + row.contiguous().numpy().tobytes() for row in picture.cpu())

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(raw, 6)) + part(b"IEND", b"")
    )
