"""Complete pieces of a growing video file, and truncating what a crash or a full disk left incomplete after them.

A piece starts at a key frame and ends before the next. Independent of sound and encoders.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import av

from .open_media import FormatError, open_media

_BOX = struct.Struct(">I4s")  # ISO/IEC 14496-12: size with this header, type
_LARGE_SIZE = struct.Struct(">Q")  # follows the header when its size field is 1
_DATA = b"mdat"


def trim_boxes(path: Path) -> bool:
    """Truncate an MP4 file after its last complete fragment (moof + mdat); players reject a file that ends in a moof.

    Returns True: the rest is complete. Raises OSError.
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
    """Does nothing: Matroska plays up to wherever it ends. Returns False: its last piece may be incomplete."""
    return False


def plays(path: Path) -> bool:
    """Whether a file, complete or not, has a picture to play."""
    try:
        with open_media(path) as container:
            return any(packet.size for packet in container.demux(video=0))
    except (FormatError, av.error.FFmpegError, OSError, IndexError):
        return False


def whole_pieces(
    container: av.container.InputContainer, stream: av.VideoStream, *, keep_last: bool
) -> Iterator[av.Packet]:
    """Video packets of all complete pieces; the last piece may be incomplete and is left out.

    keep_last: the last piece is known to be complete too. Holds one piece in memory.
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
        return  # the end of an interrupted file; all complete pieces were yielded
    if keep_last:
        yield from piece
