"""The whole pieces of a growing video file, and cutting off what a crash or a full disk left half written behind them.

A piece starts at a key frame and ends before the next. Knows no sound and no encoder.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import av

_BOX = struct.Struct(">I4s")  # ISO/IEC 14496-12: size with this header, type
_LARGE_SIZE = struct.Struct(">Q")  # follows the header when its size field is 1
_DATA = b"mdat"


def trim_boxes(path: Path) -> bool:
    """Cut an MP4 file behind its last whole fragment (moof + mdat); players refuse a file that ends inside a moof.

    Returns True: all that is left is whole. Raises OSError.
    """
    length = path.stat().st_size
    end = position = 0
    with path.open("r+b") as file:
        while position + _BOX.size <= length:
            file.seek(position)
            size, kind = _BOX.unpack(file.read(_BOX.size))
            if size == 1:
                wide = file.read(_LARGE_SIZE.size)
                size = _LARGE_SIZE.unpack(wide)[0] if len(wide) == _LARGE_SIZE.size else length + 1
            if size < _BOX.size or position + size > length:
                break
            position += size
            if kind == _DATA:
                end = position
        if end != length:
            file.truncate(end)
    return True


def trim_nothing(path: Path) -> bool:
    """Matroska plays to wherever it ends. Returns False: its last piece may be half written."""
    return False


def whole_pieces(
    container: av.container.InputContainer, stream: av.VideoStream, *, keep_last: bool
) -> Iterator[av.Packet]:
    """Video packets up to the last key frame that is followed by another: what lies behind it may be cut off.

    keep_last: the last piece is known to be whole too. Holds one piece in memory.
    """
    piece: list[av.Packet] = []
    try:
        for packet in container.demux(stream):
            if not packet.size or packet.is_corrupt:
                continue
            if packet.is_keyframe:
                yield from piece
                piece = []
            piece.append(packet)
    except av.error.FFmpegError:
        return  # damage at the end of a killed file; everything whole was given out
    if keep_last:
        yield from piece
