"""The inputs of a take on disk: the received file if decoding it reproduces the pixels, else a lossless copy.

Owns the segment files and the tables of formats and decoders. Independent of sessions and the log.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from PIL import Image

from app.disk.private import open_private
from app.media.picture import cover
from app.media.picture_file import read_still
from app.media.source import MAX_PICTURE_PIXELS
from pipelines.core.errors import InputError
from pipelines.core.types import Picture

from .records import StoredInput

_SEGMENT_BYTES = 256 * 2**20
_SEGMENT_NAME = re.compile(r"inputs-\d{4,}\.bin")
_CHECKED_AT_FIRST = 4
_CHECKED_EVERY = 30
# Half the time of the default filters at the same file size: 18 ms instead of 34 on a photograph of 512x512.
_QUICK_PNG = [
    *(cv2.IMWRITE_PNG_COMPRESSION, 1),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE),
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
]


def fingerprint(image: Picture) -> str:
    """sha256 of the RGB bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()


def _simplejpeg(data: bytes) -> Picture:
    picture: Picture = simplejpeg.decode_jpeg(data, "RGB")
    return picture


def _opencv(data: bytes) -> Picture:
    decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise ValueError("not a picture")
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _pillow(data: bytes) -> Picture:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened.convert("RGB"))


def _reader(data: bytes) -> Picture:
    return read_still(data, max_px=MAX_PICTURE_PIXELS)


DECODERS: Mapping[str, Callable[[bytes], Picture]] = MappingProxyType(
    {"reader": _reader, "simplejpeg": _simplejpeg, "opencv": _opencv, "pillow": _pillow}
)
"""By name. The one that was used live is found by trying: decoders differ in the last bit. `reader` is the one that the
server uses (upright, sRGB, black where transparent); the others are for takes that were recorded before it."""


class InputArchive:
    """Writes inputs to segment files in `folder`, unbuffered: a killed process loses nothing that was added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._offset = 0
        self._file: io.FileIO | None = None
        self._decoder = ""  # the one that reproduced the pixels of the last received picture checked
        self._received = 0

    def add(
        self, seq: int, captured_ns: int, image: Picture, received: bytes | None, *, hurry: bool = False
    ) -> StoredInput:
        """image: as offered to the stream, after `cover`. received: the file it was decoded from, if any.

        hurry: skip compression. Raises OSError.
        """
        data, kind, decoder = self._encoded(image, received, hurry=hurry)
        size = (image.shape[1], image.shape[0])
        return self._store(seq, captured_ns, data, kind, decoder, size, fingerprint(image))

    def add_undecoded(self, captured_ns: int, received: bytes) -> StoredInput:
        """Add a file that was dropped before it was decoded. Raises OSError."""
        return self._store(None, captured_ns, received, "received", self._decoder, (0, 0), "")

    def _store(
        self,
        seq: int | None,
        captured_ns: int,
        data: bytes,
        kind: str,
        decoder: str,
        size: tuple[int, int],
        sha256: str,
    ) -> StoredInput:
        file = self._segment_for(len(data))
        left = memoryview(data)
        while left:
            left = left[file.write(left) :]
        stored = StoredInput(
            seq=seq,
            captured_ns=captured_ns,
            file=Path(str(file.name)).name,
            offset=self._offset,
            size=len(data),
            format=kind,
            decoder=decoder,
            width=size[0],
            height=size[1],
            sha256=sha256,
        )
        self._offset += len(data)
        return stored

    def close(self) -> None:
        """Close the file. Never raises: nothing is buffered."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _encoded(self, image: Picture, received: bytes | None, *, hurry: bool) -> tuple[bytes, str, str]:
        """The bytes to store, their format, and for received files the decoder."""
        if received is not None and (decoder := self._decoder_of(received, image)):
            return received, "received", decoder
        if not hurry:
            done, packed = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), _QUICK_PNG)
            assert done, "PNG encoding of a uint8 RGB picture cannot fail"
            return packed.tobytes(), "png", ""
        return image.tobytes(), "rgb", ""

    def _decoder_of(self, received: bytes, image: Picture) -> str:
        """The decoder that turns `received` into `image`; empty: none. Checked for the first few and periodically."""
        self._received += 1
        if self._received <= _CHECKED_AT_FIRST or self._received % _CHECKED_EVERY == 0:
            names = sorted(DECODERS, key=lambda name: name != self._decoder)
            self._decoder = next((name for name in names if _reproduces(DECODERS[name], received, image)), "")
        return self._decoder

    def _segment_for(self, size: int) -> io.FileIO:
        if self._file is None or self._offset + size > _SEGMENT_BYTES:
            self.close()
            self._number += 1
            self._offset = 0
            self._file = open_private(self._folder / f"inputs-{self._number:04d}.bin")
        return self._file


def load_input(folder: Path, stored: StoredInput, width: int, height: int) -> tuple[Picture, bool]:
    """The picture at that size, and whether its pixels match the take's (always true at another size).

    Raises InputError if it cannot be read.
    """
    if _SEGMENT_NAME.fullmatch(stored.file) is None:
        raise InputError(f"The take names {stored.file!r} as a file of inputs.", "It was not written by Zoetrope.")
    try:
        with (folder / stored.file).open("rb") as opened:
            opened.seek(stored.offset)
            data = opened.read(stored.size)
        if len(data) != stored.size:
            raise ValueError("cut off")
        picture = _decoded(data, stored)
    except (OSError, ValueError, KeyError, RuntimeError, cv2.error) as error:
        raise InputError(f"Input {stored.seq} of the take cannot be read: {error}.") from error
    picture = cover(picture, width, height)
    same = (width, height) != (stored.width, stored.height) or fingerprint(
        picture
    ) == stored.sha256  # a dropped one: 0x0
    return picture, same


def _decoded(data: bytes, stored: StoredInput) -> Picture:
    match stored.format:
        case "received":
            return DECODERS[stored.decoder or "reader"](data)
        case "rgb":
            return np.frombuffer(data, np.uint8).reshape(stored.height, stored.width, 3)
        case "png":
            return _opencv(data)
    raise ValueError(f"unknown format {stored.format!r}")


def _reproduces(decode: Callable[[bytes], Picture], received: bytes, image: Picture) -> bool:
    try:
        return np.array_equal(cover(decode(received), image.shape[1], image.shape[0]), image)
    except (InputError, ValueError, OSError, cv2.error):  # not a format of this decoder
        return False
