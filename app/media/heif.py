"""The boxes of HEIF files (ISO/IEC 23008-12): AVIF and HEIC. Says how large their coded pictures are, undecoded.

A decoder allocates what the coded data say, whatever size the file declares. Independent of decoders.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO

from .av1 import sequence_sizes
from .cicp import CodePoints

_META_BYTES = 16 << 20
_ITEMS_BYTES = 256 << 20  # of all of them: several may point to the same bytes
_MAX_BOXES = 10_000
_MAX_ITEMS = 10_000
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_AVIF = frozenset({b"avif", b"avis"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One coded picture, grid of pictures, or piece of metadata. kind: its four letters. data: its bytes."""

    kind: bytes
    data: bytes


def brand(stream: BinaryIO) -> str:
    """ "AVIF", "AVIF sequence" (frames with times, as in a video), "HEIC", or "" for anything else."""
    stream.seek(0)
    head = stream.read(8)
    if head[4:8] != b"ftyp":
        return ""
    (length,) = struct.unpack(">I", head[:4])
    brands = stream.read(min(max(0, length - 8), 1024))
    names = {brands[:4], *(brands[at : at + 4] for at in range(8, len(brands), 4))}
    if names & _AVIF:
        moves = brands[:4] == b"avis" or any(kind == b"moov" for kind, _, _ in _file_boxes(stream))
        return "AVIF sequence" if moves else "AVIF"
    return "HEIC" if brands[:4] in _HEIC else ""


def coded_sizes(file: HeifFile) -> list[tuple[int, int]]:
    """(width, height) in px of each coded AV1 picture and of each grid. Raises ValueError for a damaged file."""
    sizes: list[tuple[int, int]] = []
    for item in file.items.values():
        if item.kind == b"av01":
            found = sequence_sizes(item.data)
            if not found:
                raise ValueError("a coded picture has no sequence header")
            sizes += found
        elif item.kind == b"grid":
            sizes.append(grid_of(item.data)[2:])
    if not sizes:
        raise ValueError("it has no coded picture")
    return sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class HeifFile:
    """The table of a file. items: its coded pictures and grids, by number. primary: the one to show.

    properties: an item's boxes, in order: (kind, contents). references: (kind, from) -> the items that it refers to.
    """

    items: Mapping[int, Item]
    primary: int
    properties: Mapping[int, list[tuple[bytes, bytes]]]
    references: Mapping[tuple[bytes, int], list[int]]


def colours_of(file: HeifFile, number: int) -> CodePoints | None:
    """What an item says of its colours by code points; None if it says nothing."""
    for kind, content in file.properties.get(number, []):
        if kind == b"colr" and content[:4] == b"nclx" and len(content) >= 8:
            primaries, transfer = struct.unpack_from(">HH", content, 4)
            return CodePoints(primaries=primaries, transfer=transfer)
    return None


def read_file(stream: BinaryIO) -> HeifFile:
    """The table of a file, with the bytes of its pictures. Raises ValueError for a damaged file."""
    meta = next(((start, end) for kind, start, end in _file_boxes(stream) if kind == b"meta"), None)
    if meta is None or meta[1] - meta[0] > _META_BYTES:
        raise ValueError("it has no table of its pictures")
    stream.seek(meta[0])
    data = stream.read(meta[1] - meta[0])
    inner = {kind: data[start:end] for kind, start, end in _boxes(data, 4)}  # behind version and flags
    try:
        kinds = _item_kinds(inner[b"iinf"])
        places = dict(_item_places(inner[b"iloc"]))
        properties = _item_properties(inner.get(b"iprp", b""))
        references = _item_references(inner.get(b"iref", b""))
        primary = int.from_bytes(inner.get(b"pitm", bytes(4))[4:], "big")
    except (KeyError, struct.error, IndexError) as error:
        raise ValueError("its table of pictures is damaged") from error
    whole, pictures = inner.get(b"idat", b""), (b"av01", b"hvc1", b"grid")
    items: dict[int, Item] = {}
    left = _ITEMS_BYTES
    for number, kind in kinds.items():
        if number in places:
            data = _gathered(stream, whole, *places[number], left) if kind in pictures else b""
            items[number] = Item(kind=kind, data=data)
            left -= len(data)
    return HeifFile(items=items, primary=primary, properties=properties, references=references)


def _file_boxes(stream: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the contents of each box of the file."""
    end = stream.seek(0, 2)
    at = 0
    for _ in range(_MAX_BOXES):
        stream.seek(at)
        head = stream.read(16)
        if len(head) < 8:
            return
        (length,) = struct.unpack(">I", head[:4])
        skip = 8
        if length == 1 and len(head) == 16:
            (length,) = struct.unpack(">Q", head[8:])
            skip = 16
        elif length == 0:
            length = end - at
        if length < skip:
            return
        yield head[4:8], at + skip, min(end, at + length)
        at += length


def _boxes(data: bytes, at: int) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of the contents of each box in `data` from `at` on."""
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind = data[at + 4 : at + 8]
        length = len(data) - at if length == 0 else length
        if length < 8:
            return
        yield kind, at + 8, min(len(data), at + length)
        at += length


def _item_kinds(data: bytes) -> dict[int, bytes]:
    """Of the box iinf: an item's number -> the four letters of its kind."""
    first = 6 if data[0] == 0 else 8
    kinds: dict[int, bytes] = {}
    for kind, start, end in _boxes(data, first):
        if kind != b"infe":
            continue
        version, entry = data[start], data[start + 4 : end]
        if version < 2:
            raise ValueError("its table of pictures is of an old version")
        wide = version > 2
        (number,) = struct.unpack_from(">I" if wide else ">H", entry)
        at = 6 if wide else 4  # behind the protection's index
        kinds[number] = entry[at : at + 4]
    return kinds


def _item_properties(data: bytes) -> dict[int, list[tuple[bytes, bytes]]]:
    """Of the box iprp: an item's number -> its properties, in order."""
    inner = [(kind, data[start:end]) for kind, start, end in _boxes(data, 0)]
    known: list[tuple[bytes, bytes]] = []
    for kind, content in inner:
        if kind == b"ipco":
            known += [(name, content[start:end]) for name, start, end in _boxes(content, 0)]
    found: dict[int, list[tuple[bytes, bytes]]] = {}
    for content in (content for kind, content in inner if kind == b"ipma"):
        wide_item, wide_index, at = content[0] > 0, content[3] & 1, 8
        for _ in range(min(int.from_bytes(content[4:8], "big"), _MAX_ITEMS)):
            number = int.from_bytes(content[at : at + (4 if wide_item else 2)], "big")
            at += 4 if wide_item else 2
            count, at = content[at], at + 1
            for _ in range(count):
                index = int.from_bytes(content[at : at + 2], "big") & 0x7FFF if wide_index else content[at] & 0x7F
                at += 2 if wide_index else 1
                if index:
                    found.setdefault(number, []).append(known[index - 1])
    return found


def _item_references(data: bytes) -> dict[tuple[bytes, int], list[int]]:
    """Of the box iref: (kind, from) -> the items that it refers to."""
    found: dict[tuple[bytes, int], list[int]] = {}
    width = 4 if data and data[0] else 2
    for kind, start, end in _boxes(data, 4):
        numbers = data[start:end]
        source, count = int.from_bytes(numbers[:width], "big"), int.from_bytes(numbers[width : width + 2], "big")
        at = width + 2
        count = min(count, (len(numbers) - at) // width)
        targets = [int.from_bytes(numbers[at + width * i : at + width * (i + 1)], "big") for i in range(count)]
        found.setdefault((kind, source), []).extend(targets)
    return found


def _item_places(data: bytes) -> Iterator[tuple[int, tuple[int, list[tuple[int, int]]]]]:
    """Of the box iloc: an item's number, whether it is in the file (0) or in the box idat (1), (offset, length)s."""
    version, at = data[0], 6
    offset_bytes, length_bytes = data[4] >> 4, data[4] & 15
    base_bytes, index_bytes = data[5] >> 4, data[5] & 15 if version else 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(data):
            raise IndexError
        return int.from_bytes(data[at - count : at], "big")

    for _ in range(min(take(2 if version < 2 else 4), _MAX_ITEMS)):
        number = take(2 if version < 2 else 4)
        method = take(2) & 15 if version else 0
        take(2)  # data reference
        base = take(base_bytes)
        extents = []
        count = take(2)
        if count > 1 and not length_bytes:
            raise IndexError
        for _ in range(count):
            take(index_bytes)
            offset = base + take(offset_bytes)
            extents.append((offset, take(length_bytes)))
        yield number, (method, extents)


def _gathered(stream: BinaryIO, idat: bytes, method: int, extents: list[tuple[int, int]], left: int) -> bytes:
    """left: bytes that may still be taken."""
    parts = []
    for offset, length in extents:
        wanted = length or left  # 0: to the end
        if wanted > left:
            raise ValueError("its coded pictures are too long")
        if method == 1:
            part = idat[offset : offset + wanted]
        else:
            stream.seek(offset)
            part = stream.read(wanted)
        if length and len(part) < length:
            raise ValueError("the file is cut off")
        left -= len(part)
        parts.append(part)
    return b"".join(parts)


def grid_of(data: bytes) -> tuple[int, int, int, int]:
    """(rows, columns, width, height): of a grid's tiles, and of its picture in px. Raises ValueError."""
    wide = len(data) > 1 and data[1] & 1
    if len(data) < (12 if wide else 8):
        raise ValueError("its grid is damaged")
    width, height = struct.unpack_from(">II" if wide else ">HH", data, 4)
    return data[2] + 1, data[3] + 1, width, height
