"""The size of AV1 pictures, read from their sequence headers (AV1 specification, sections 5.3 to 5.5).

Decodes nothing; independent of files.
"""

from __future__ import annotations

_SEQUENCE_HEADER = 1
_MAX_UNITS = 10_000


class _Bits:
    """Reads big-endian bits."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = len(data) * 8

    def take(self, count: int) -> int:
        """The next `count` bits as a number. Raises ValueError at the end."""
        self._left -= count
        if self._left < 0:
            raise ValueError("a sequence header is cut off")
        return self._value >> self._left & (1 << count) - 1

    def skip_long_number(self) -> None:
        """Skip a number of variable length (uvlc)."""
        zeros = 0
        while not self.take(1):
            zeros += 1
        self.take(min(zeros, 32) if zeros < 32 else 0)


def sequence_sizes(data: bytes) -> list[tuple[int, int]]:
    """(width, height) in px, the largest that each sequence header in `data` allows. Raises ValueError."""
    sizes: list[tuple[int, int]] = []
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data):
            return sizes
        head = data[at]
        at += 2 if head & 4 else 1
        length = len(data) - at
        if head & 2:
            length, at = _leb128(data, at)
        if head >> 3 & 15 == _SEQUENCE_HEADER:
            sizes.append(_size(_Bits(data[at : at + min(length, 1024)])))
        at += length
    raise ValueError("it has too many parts")


def _leb128(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 56, 7):
        if at >= len(data):
            raise ValueError("a length is cut off")
        value |= (data[at] & 127) << shift
        at += 1
        if not data[at - 1] & 128:
            break
    return value, at


def _size(bits: _Bits) -> tuple[int, int]:
    bits.take(4)  # profile, still picture
    if bits.take(1):  # reduced still picture header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing info
        bits.take(64)
        if bits.take(1):
            bits.skip_long_number()
        if bits.take(1):  # decoder model info
            delay_bits = bits.take(5) + 1
            bits.take(42)
    shows_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if shows_delay and bits.take(1):
            bits.take(4)
