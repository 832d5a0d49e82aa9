"""Chooses the reader for a renderer's input: a video file, a picture, an animation or a folder."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from pipelines.core.errors import InputError

from .animation_reader import AnimationReader
from .picture_reader import PictureReader, is_animated, picture_kind
from .source import MAX_PICTURE_PIXELS, Source
from .video_reader import VideoReader

DEFAULT_FOLDER_FRAME_RATE = Fraction(24)
_JPEG_STREAMS = frozenset({".mjpeg", ".mjpg"})  # begin as a JPEG does


def open_source(path: Path, frame_rate: Fraction | None, *, max_px: int = MAX_PICTURE_PIXELS) -> Source:
    """A reader for a video file, a picture file or a folder of pictures.

    frame_rate: for folders (default 24); a video has its own. max_px: of a picture or video frame, checked before it is
    decoded. Raises InputError.
    """
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.", "Check the spelling of the input.")
    if path.is_dir():
        return PictureReader.folder(path, frame_rate or DEFAULT_FOLDER_FRAME_RATE, max_px=max_px)
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder.", "Give a video file or a folder of pictures.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).", "Download or export it again.")
    kind = picture_kind(path)
    still = kind is not None and not kind.as_video and path.suffix.lower() not in _JPEG_STREAMS
    if still and not is_animated(path, max_px):
        return PictureReader(str(path), [path], frame_rate or DEFAULT_FOLDER_FRAME_RATE, max_px=max_px)
    if frame_rate is not None:
        raise InputError("--fps was given with a video file.", "Leave it out: a video keeps its own frame rate.")
    return AnimationReader(path, max_px=max_px) if still else VideoReader(path, max_px=max_px)
