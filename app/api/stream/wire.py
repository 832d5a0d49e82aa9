"""The binary message of the frame stream: a 32-byte header, then the picture. Version 1.

Owns the layout and its validation; independent of codecs, sockets and sessions.

    offset  type  field         meaning
    0       2 B   magic         b"ZT"
    2       u8    version       1
    3       u8    format        0 raw RGB, 1 JPEG, 2 WebP
    4       u16   flags         0
    6       u16   header bytes  32
    8       u32   seq           the sender's sequence number
    12      u32   source_seq    the seq of the input that a frame was made from; 0xFFFFFFFF: none
    16      f64   captured_ms   the client's clock at capture, echoed; 0: none
    24      u16   width         px
    26      u16   height        px
    28      u32   server_us     from the arrival of that input to the sending of this frame; 0 from a client

All numbers are little-endian.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from enum import IntEnum

from pipelines.core.errors import InputError

VERSION = 1
HEADER_BYTES = 32
MAX_SIDE_PX = 0xFFFF

_MAGIC = b"ZT"
_LAYOUT = struct.Struct("<2sBBHHIIdHHI")
_NO_SOURCE = 0xFFFFFFFF
_U32 = 0xFFFFFFFF

assert _LAYOUT.size == HEADER_BYTES


class WireError(InputError):
    """A binary message with an invalid header."""


class PictureFormat(IntEnum):
    """The encoding of the picture after the header; the value is the header's byte."""

    RGB = 0  # height x width x 3 bytes, top row first
    JPEG = 1
    WEBP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The header of a binary message.

    seq: 0..2^32-1 (2^32-1 cannot be echoed: it means "none"). source_seq: of the client's input, or None.
    captured_ms: the client's clock; 0: none. width, height: px, 1..65535. server_us: 0..2^32-1.
    """

    format: PictureFormat
    seq: int
    width: int
    height: int
    source_seq: int | None = None
    captured_ms: float = 0.0
    server_us: int = 0


def pack_header(header: Header) -> bytes:
    """The 32 bytes. Sequence numbers wrap modulo 2^32; `server_us` saturates (at 71 minutes)."""
    assert 1 <= header.width <= MAX_SIDE_PX, header.width
    assert 1 <= header.height <= MAX_SIDE_PX, header.height
    return _LAYOUT.pack(
        _MAGIC,
        VERSION,
        header.format,
        0,
        HEADER_BYTES,
        header.seq & _U32,
        _NO_SOURCE if header.source_seq is None else header.source_seq & _U32,
        header.captured_ms,
        header.width,
        header.height,
        min(max(0, header.server_us), _U32),
    )


def parse_header(message: bytes) -> Header:
    """The header of a binary message; the picture is `message[HEADER_BYTES:]`. Raises WireError."""
    if len(message) < HEADER_BYTES:
        raise WireError(f"A binary message of {len(message)} bytes has no header.", f"Send {HEADER_BYTES} bytes first.")
    magic, version, code, flags, size, seq, source_seq, captured_ms, width, height, server_us = _LAYOUT.unpack_from(
        message
    )
    if magic != _MAGIC:
        raise WireError(f"A binary message begins with {magic!r}.", f"It must begin with {_MAGIC!r}.")
    if version != VERSION:
        raise WireError(f"Version {version} of the frame stream is not supported.", f"Use version {VERSION}.")
    if flags != 0 or size != HEADER_BYTES:
        raise WireError(f"flags {flags} and a header of {size} bytes are not supported.", f"Use 0 and {HEADER_BYTES}.")
    if code not in PictureFormat.__members__.values():
        raise WireError(f"There is no picture format {code}.", "Use 0 (raw RGB), 1 (JPEG) or 2 (WebP).")
    if width == 0 or height == 0:
        raise WireError(f"A picture of {width}x{height} px has no pixels.", "Give its width and height.")
    if not math.isfinite(captured_ms):
        raise WireError(f"captured_ms cannot be {captured_ms}.", "Give a finite number, or 0 for none.")
    return Header(
        format=PictureFormat(code),
        seq=seq,
        width=width,
        height=height,
        source_seq=None if source_seq == _NO_SOURCE else source_seq,
        captured_ms=captured_ms,
        server_us=server_us,
    )
