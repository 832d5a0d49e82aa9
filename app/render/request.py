"""The request for a render. Reads nothing; independent of engines."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from app.media.geometry import Aspect, Size
from app.media.source import MAX_PICTURE_PIXELS
from pipelines.core.controls import Control
from pipelines.files.loader_options import LoaderOptions

OutSize = Size | str
"""Pixels, "native" (the engine's size), or "source"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """What to render. source: None for prompt-only, which needs `frames` or `seconds`. model, engine: for the loader.

    frame_rate: of pictures and of prompt-only frames; None: the source's or the model's own. first_picture: a picture
    that a prompt-only video begins with. timeline: a timeline file. as_folder: OUTPUT ended in '/'. max_px: of a
    picture or video frame.
    """

    source: Path | None
    output: Path
    control: Control
    model: str
    engine: LoaderOptions = field(default_factory=LoaderOptions)
    aspect: Aspect = Aspect.PAD
    out_size: OutSize = "native"
    frame_rate: Fraction | None = None
    frames: int | None = None
    seconds: Fraction | None = None
    first_picture: Path | None = None
    timeline: Path | None = None
    as_folder: bool = False
    force: bool = False
    resume: bool = False
    max_px: int = MAX_PICTURE_PIXELS
