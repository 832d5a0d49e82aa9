"""A read-only view of some ranges of a file, one after the other. Independent of what is in them."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class Spliced(io.RawIOBase):
    """parts: (offset, length) in bytes. The file stays the caller's; nothing is read before it is asked for."""

    def __init__(self, stream: BinaryIO, parts: Sequence[tuple[int, int]]) -> None:
        self._stream = stream
        self._parts = [part for part in parts if part[1]]
        self._starts = [0, *accumulate(length for _, length in self._parts)]
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As of any file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._starts[-1]}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill `buffer` up to the end of a range; 0 at the end of the last one."""
        view = memoryview(buffer).cast("B")
        part = bisect_right(self._starts, self._at) - 1
        if part >= len(self._parts):
            return 0
        offset, length = self._parts[part]
        skip = self._at - self._starts[part]
        self._stream.seek(offset + skip)
        data = self._stream.read(min(len(view), length - skip))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)
