"""Chooses the reader for a renderer's input: a video file, a picture or a folder of pictures."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from pipelines.core.errors import InputError

from .picture_reader import PictureReader, is_picture
from .source import Source
from .video_reader import VideoReader

DEFAULT_FOLDER_FRAME_RATE = Fraction(24)


def open_source(path: Path, frame_rate: Fraction | None) -> Source:
    """A reader for a video file, a picture file or a folder of pictures.

    frame_rate: for folders (default 24); a video has its own. Raises InputError.
    """
    if not path.exists():
        raise InputError(f"There is no file or folder {path}.", "Check the spelling of the input.")
    if path.is_dir():
        return PictureReader.folder(path, frame_rate or DEFAULT_FOLDER_FRAME_RATE)
    if not path.is_file():
        raise InputError(f"{path} is neither a file nor a folder.", "Give a video file or a folder of pictures.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes).", "Download or export it again.")
    if is_picture(path):
        return PictureReader(str(path), [path], frame_rate or DEFAULT_FOLDER_FRAME_RATE)
    if frame_rate is not None:
        raise InputError("--fps was given with a video file.", "Leave it out: a video keeps its own frame rate.")
    return VideoReader(path)
