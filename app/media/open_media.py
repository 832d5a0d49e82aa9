"""Opens media files for reading: only from the local disk, and only in the container formats of the table here.

FFmpeg also reads playlists, lists of other files, captures of the screen and network addresses. A file from a stranger
may be any of these, whatever its name says. Independent of what is read from the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import av

from pipelines.core.errors import InputError

from .source import MAX_PICTURE_PIXELS

FORMATS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "MP4, MOV, 3GP": ("mov", "mp4", "m4a", "3gp", "3g2", "mj2"),
        "Matroska, WebM": ("matroska", "webm"),
        "AVI": ("avi",),
        "MPEG-TS": ("mpegts",),
        "MPEG-PS, VOB": ("mpeg",),
        "Windows Media": ("asf",),
        "FLV": ("flv",),
        "MXF": ("mxf",),
        "Ogg": ("ogg",),
        "NUT": ("nut",),
        "DV": ("dv",),
        "IVF": ("ivf",),
        "Y4M": ("yuv4mpegpipe",),
        "raw H.264, HEVC, AV1, MPEG video and Motion JPEG": ("h264", "hevc", "obu", "m4v", "mpegvideo", "mjpeg"),
    }
)
"""What may be opened: the name for people -> FFmpeg's demuxers."""

OPENED = f"Opened are {'; '.join(FORMATS)}."
"""The formats, as a sentence for people."""

_OPTIONS = {
    "format_whitelist": ",".join(name for names in FORMATS.values() for name in names),
    "protocol_whitelist": "file",
}


class FormatError(InputError):
    """The file's container format is not one that is opened."""


def open_media(path: Path, max_px: int = MAX_PICTURE_PIXELS) -> av.container.InputContainer:
    """Open a file, which decodes a frame of some formats: of at most `max_px` pixels.

    Raises FormatError, av.error.FFmpegError and OSError.
    """
    try:
        return av.open(file_url(path), options={**_OPTIONS, "max_pixels": str(max_px)})
    except av.error.ArgumentError as error:  # what FFmpeg says of a format that is not in the list
        raise FormatError(
            f"{path} is not in a container format that is opened here.",
            f"Convert it to MP4 or Matroska first. {OPENED}",
        ) from error


def file_url(path: Path) -> str:
    """The name of a file for FFmpeg, which would take the part before a colon for a protocol."""
    return f"file:{path}"
