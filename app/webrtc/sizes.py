"""The size of an encoded picture, parsed from its headers before anything is allocated for it.

VP8: the key frame's header (RFC 6386, section 9.1). H.264: the sequence parameter set (ITU-T H.264, sections 7.3.2.1.1
and 7.4.2.1.1). Independent of connections and decoders.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

_VP8_START = b"\x9d\x01\x2a"
_START_CODE = b"\x00\x00\x01"
_SPS = 7
_SPS_BYTES = 512  # of a sequence parameter set; real ones have a few dozen
_WITH_CHROMA = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)  # profiles, from section 7.3.2.1.1
_CHROMA_444 = 3
_MACROBLOCK_PX = 16
_MAX_ZEROS = 32  # of an Exp-Golomb code
_MAX_REFERENCES = 255  # of a cycle of the picture order count


class PictureSizeError(ValueError):
    """A header that should contain a size is invalid."""


def coded_size_px(codec: str, data: bytes) -> tuple[int, int] | None:
    """(width, height) that a decoder of `codec` ("VP8" or "H264") would allocate; None if the frame has no new size.

    data: one frame without RTP headers, H.264 with start codes. The largest of several sizes. Raises
    PictureSizeError.
    """
    reader = _READERS.get(codec.upper())
    if reader is None:
        return None
    try:
        return max(reader(data), key=lambda size: size[0] * size[1], default=None)
    except (IndexError, OverflowError) as error:
        raise PictureSizeError(f"a {codec} picture ends before its size") from error


def _vp8_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    if not data or data[0] & 1:  # not a key frame
        return
    if data[3:6] != _VP8_START:
        raise PictureSizeError("a VP8 key frame has no start code")
    yield (data[6] | data[7] << 8) & 0x3FFF, (data[8] | data[9] << 8) & 0x3FFF


def _h264_sizes(data: bytes) -> Iterator[tuple[int, int]]:
    at = data.find(_START_CODE)
    while at >= 0:
        begins = at + len(_START_CODE)
        if begins < len(data) and data[begins] & 0x1F == _SPS:
            yield _sps_size(_Bits(data[begins + 1 : begins + 1 + _SPS_BYTES].replace(b"\x00\x00\x03", b"\x00\x00")))
        at = data.find(_START_CODE, begins)


def _sps_size(bits: _Bits) -> tuple[int, int]:
    profile = bits.take(8)
    bits.take(16)  # constraints and level
    bits.golomb()  # its id
    if profile in _WITH_CHROMA:
        _skip_chroma(bits)
    bits.golomb()  # bits of the frame number
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.take(1)
        bits.golomb()
        bits.golomb()
        _skip(bits, bits.golomb())
    bits.golomb()  # reference frames
    bits.take(1)
    width, units = bits.golomb() + 1, bits.golomb() + 1
    height = units * (2 - bits.take(1))  # pairs of fields where frames may be interlaced
    return width * _MACROBLOCK_PX, height * _MACROBLOCK_PX


def _skip(bits: _Bits, count: int) -> None:
    if count > _MAX_REFERENCES:
        raise PictureSizeError(f"a sequence parameter set has a cycle of {count}")
    for _ in range(count):
        bits.golomb()


def _skip_chroma(bits: _Bits) -> None:
    chroma = bits.golomb()
    if chroma == _CHROMA_444:
        bits.take(1)
    bits.golomb()  # bit depths
    bits.golomb()
    bits.take(1)
    if not bits.take(1):  # no scaling matrix
        return
    for number in range(8 if chroma != _CHROMA_444 else 12):
        if bits.take(1):
            _skip_scaling_list(bits, 16 if number < 6 else 64)


def _skip_scaling_list(bits: _Bits, count: int) -> None:
    """Section 7.3.2.1.1.1."""
    last = following = 8
    for _ in range(count):
        if following:
            following = (last + bits.signed_golomb()) % 256
        last = following or last


class _Bits:
    """Reads bits, most significant first. Raises IndexError past the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> int:
        value = 0
        for _ in range(count):
            value = value << 1 | self._data[self._at >> 3] >> (7 - (self._at & 7)) & 1
            self._at += 1
        return value

    def golomb(self) -> int:
        """ue(v), section 9.1."""
        zeros = 0
        while not self.take(1):
            zeros += 1
            if zeros > _MAX_ZEROS:
                raise PictureSizeError("a sequence parameter set has an oversized Exp-Golomb code")
        return (1 << zeros) - 1 + self.take(zeros)

    def signed_golomb(self) -> int:
        """se(v), section 9.1.1."""
        code = self.golomb()
        return (code + 1) // 2 if code & 1 else -(code // 2)


_READERS: Mapping[str, Callable[[bytes], Iterator[tuple[int, int]]]] = MappingProxyType(
    {"VP8": _vp8_sizes, "H264": _h264_sizes}
)
