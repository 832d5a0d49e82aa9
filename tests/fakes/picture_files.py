"""Picture files for tests: turned, transparent, with colour profiles, and small ones that hide much."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from pipelines.core.types import Picture

# Of Display P3 (SMPTE EG 432-1), adapted to D50: columns are red, green and blue.
P3_TO_XYZ = ((0.515102, 0.291965, 0.157153), (0.241182, 0.692236, 0.066582), (-0.001049, 0.041882, 0.784378))


def corners() -> Picture:
    """Return a picture of 48x32 px whose corners differ: red, green over blue, white."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:16, :24], image[:16, 24:] = (220, 20, 20), (20, 200, 20)
    image[16:, :24], image[16:, 24:] = (20, 20, 220), (240, 240, 240)
    return image


def saved(image: Image.Image | Picture, form: str, **options: object) -> bytes:
    """Return the picture as a file."""
    target = io.BytesIO()
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    made.save(target, form, **options)
    return target.getvalue()


def exif(orientation: int) -> Image.Exif:
    """Return EXIF data that hold an orientation."""
    made = Image.Exif()
    made[0x0112] = orientation
    return made


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(*chunks: bytes, size: tuple[int, int] = (16, 16)) -> bytes:
    """Return a PNG of those chunks between header and end."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def zeros(size: int) -> bytes:
    """Return `size` zero bytes, deflated."""
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()


def tiff_with_tile(side: int) -> bytes:
    """Return a TIFF of 16x16 px whose one tile claims `side` x `side` px."""
    packed = zlib.compress(bytes(1024))
    at = 8 + len(packed)
    tags = ((256, 4, 16), (257, 4, 16), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, side), (323, 4, side))
    entries = [*((tag, kind, 1, value) for tag, kind, value in tags), (324, 4, 1, 8), (325, 4, 1, len(packed))]
    entries.insert(2, (258, 3, 1, 8))
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", at) + packed + struct.pack("<H", len(entries)) + table + bytes(4)


def display_p3() -> bytes:
    """Return an ICC profile (version 2) with the primaries of Display P3 and a gamma of 2.2."""

    def numbers(*values: float) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    name = b"Display P3\0"
    text = b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(4 + 4 + 2 + 1 + 67)
    red, green, blue = zip(*P3_TO_XYZ, strict=True)
    tags = {
        b"desc": text + bytes(-len(text) % 4),
        b"cprt": b"text" + bytes(4) + b"none\0\0\0\0",
        b"wtpt": numbers(0.9642, 1.0, 0.8249),
        b"rXYZ": numbers(*red),
        b"gXYZ": numbers(*green),
        b"bXYZ": numbers(*blue),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for tag, data in tags.items():
        table += tag + struct.pack(">II", at + len(body), len(data))
        body += data
    head = bytearray(128)
    struct.pack_into(">I4sI4s4s4s", head, 0, at + len(body), b"lcms", 0x02400000, b"mntr", b"RGB ", b"XYZ ")
    struct.pack_into(">HHHHHH4s", head, 24, 2026, 1, 1, 0, 0, 0, b"acsp")
    struct.pack_into(">iii", head, 68, *(round(value * 65536) for value in (0.9642, 1.0, 0.8249)))
    return bytes(head) + struct.pack(">I", len(tags)) + table + body
