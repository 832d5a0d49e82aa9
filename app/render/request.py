"""What a render is asked for. Reads nothing and knows no engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from app.media.geometry import Aspect, Size
from pipelines.core.controls import Control
from pipelines.files.loader_options import LoaderOptions

OutSize = Size | str
"""Pixels, or "native" (the engine's), or "source"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderRequest:
    """What is to be rendered. source: None for prompt-only, which needs `frames` or `seconds`. model, engine: for the
    loader.

    frame_rate: of pictures and of prompt-only frames; None: the source's or the model's own. first_picture: a picture
    with which a prompt-only video begins. timeline: a file of changes at times. as_folder: OUTPUT was written with '/'.
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
