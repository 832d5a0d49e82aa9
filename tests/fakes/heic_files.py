"""HEIC files for tests, box by box (ISO/IEC 23008-12): a picture of one part or a grid of four, turned or mirrored.

The parts are 64x64 px of one colour each, encoded once by x265 in full range with BT.601's matrix.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence

TILES = {
    (220, 20, 20): "0000OC;_hocsz%3{#}dz{kT76`S$6SiDo14",
    (20, 200, 20): "0000NC;_hocsz%3*nj`~5r6;p+v%2xW+U(",
    (20, 20, 220): "0000OC;_hocsz%3{}BFq|IOF`{j`~uiDo14",
    (240, 240, 240): "0000HC;_hocs$^?NA<k<lf(gUfB",
}
"""By colour: top left, top right, bottom left, bottom right."""
_CONFIG = (
    "0RdnD0058x000009`FGC{rLC*01pG80096PKmiN^|NjAC00093kN^M!000939+j90p#T8@EJ6VR0bl?C0|1Z!00RI30{|YNAb|yzR%s;4@D|`9pum6t"
    "00RJk00093grWce00u+>!EvDy"
)


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box."""
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def heic(
    size: tuple[int, int] = (100, 90),
    *,
    quarters: int = 0,
    mirror: int | None = None,
    icc: bytes = b"",
    tiles: Sequence[str] = tuple(TILES.values()),
    brand: bytes = b"heic",
    in_idat: bool = True,
    alpha: str = "",
    aperture: tuple[int, int, int, int] | None = None,
) -> bytes:
    """Return a file whose primary picture is the grid of all tiles, or the one tile. quarters: anti-clockwise.

    alpha: the tile that holds the transparency of the one. aperture: width, height, and where its middle is from the
    picture's, in px.
    """
    coded = [base64.b85decode(tile) for tile in (*tiles, *([alpha] if alpha else []))]
    single = len(tiles) == 1
    grid = bytes([0, 0, 1, 1]) + struct.pack(">HH", *size)
    numbers = range(1, len(coded) + 1)
    primary = 1 if single else len(coded) + 1
    kinds = [(n, b"hvc1") for n in numbers] + ([] if single else [(primary, b"grid")])
    infe = [box(b"infe", b"\2\0\0\0", struct.pack(">HH", n, 0), kind, b"\0") for n, kind in kinds]
    shown = [box(b"ispe", bytes(4), struct.pack(">II", *size)), box(b"irot", bytes([quarters]))]
    if aperture is not None:
        width, height, across, down = aperture
        shown.insert(1, box(b"clap", struct.pack(">IIIIiIiI", width, 1, height, 1, across, 1, down, 1)))
    if mirror is not None:
        shown.append(box(b"imir", bytes([mirror])))
    if icc:
        shown.append(box(b"colr", b"prof", icc))
    auxiliary = box(b"auxC", bytes(4), b"urn:mpeg:hevc:2015:auxid:1\0")
    properties = [box(b"hvcC", base64.b85decode(_CONFIG)), *shown, auxiliary]
    of_shown = bytes(range(2, len(properties)))
    of_alpha = bytes([1, len(properties)])
    entries = [(n, of_alpha if alpha and n == 2 else b"\1") for n in numbers if n != primary] + [
        (primary, (b"\1" if single else b"") + of_shown)
    ]
    ipma = struct.pack(">I", len(entries)) + b"".join(struct.pack(">HB", n, len(p)) + p for n, p in entries)
    if alpha:
        iref = box(b"iref", bytes(4), box(b"auxl", struct.pack(">HHH", 2, 1, 1)))
    elif single:
        iref = b""
    else:
        numbered = struct.pack(f">HH{len(coded)}H", primary, len(coded), *numbers)
        iref = box(b"iref", bytes(4), box(b"dimg", numbered))

    def meta(start: int) -> bytes:
        places, at = [], start
        for n, data in zip(numbers, coded, strict=True):
            places.append(struct.pack(">HHHHII", n, 0, 0, 1, at, len(data)))
            at += len(data)
        if not single:
            places.append(struct.pack(">HHHHII", primary, int(in_idat), 0, 1, 0 if in_idat else at, len(grid)))
        return box(
            b"meta",
            bytes(4),
            box(b"hdlr", bytes(8), b"pict", bytes(13)),
            box(b"pitm", bytes(4), struct.pack(">H", primary)),
            box(b"iinf", bytes(4), struct.pack(">H", len(infe)), *infe),
            iref,
            box(b"iprp", box(b"ipco", *properties), box(b"ipma", bytes(4), ipma)),
            box(b"iloc", b"\1\0\0\0", bytes([0x44, 0]), struct.pack(">H", len(places)), *places),
            box(b"idat", grid) if in_idat else b"",
        )

    head = box(b"ftyp", brand, bytes(4), b"mif1", b"heic")
    start = len(head) + len(meta(0)) + 8
    return head + meta(start) + box(b"mdat", *coded, grid)
