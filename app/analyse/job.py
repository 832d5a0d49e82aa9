"""Owns one analysis from the user's request to its two files: opens the clip and the model, measures, writes.

Independent of the command line; the caller passes what loads an engine. Nothing is written before all is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from app.media.geometry import Aspect, Placement
from app.media.open_source import open_source
from pipelines.core.contracts import Engine, Notify
from pipelines.core.controls import Control
from pipelines.core.errors import InputError, ModelError, OutputError
from pipelines.core.types import Picture
from pipelines.files.loader_options import LoaderOptions
from pipelines.image.analysis.analysis import Analysis, Question, analyse, check_clip, look_inside
from pipelines.image.analysis.play import Progress
from pipelines.image.engine import ImageEngine
from pipelines.kinds import kind_of

from .page import page


@dataclass(frozen=True, slots=True, kw_only=True)
class AnalyseRequest:
    """clip: any file or folder that is read. stem: of the files that are written, `stem`.json and `stem`.html. frames:
    the most that are read of the clip. made: the command and the day. step_profile: see `Question`."""

    model: str
    clip: Path
    stem: Path
    engine: LoaderOptions
    control: Control
    frames: int
    made: str
    step_profile: bool = True
    force: bool = False

    @property
    def profile(self) -> Path:
        """The cache profile's file."""
        return self.stem.with_name(f"{self.stem.name}.json")

    @property
    def page(self) -> Path:
        """The page's file."""
        return self.stem.with_name(f"{self.stem.name}.html")


def run_analysis(request: AnalyseRequest, load: Callable[..., Engine], say: Notify, progress: Progress) -> Analysis:
    """Analyse and write both files. load: pipelines.load.load_engine or one like it. Raises ZoetropeError."""
    _check_model(request.model)
    _check_outputs(request)
    source = open_source(request.clip, None)
    if source.info.frames is not None:
        check_clip(source.info.frames)
    question = Question(control=request.control.changes(), made=request.made, step_profile=request.step_profile)
    with _loaded(load, request.model, request.engine.changed({"backend": "eager"}), say) as engine:
        pictures = clip_pictures(request.clip, (engine.core.width, engine.core.height), request.frames)
        inside = look_inside(engine, pictures, question, progress)
    with _loaded(load, request.model, request.engine, say) as engine:
        found = analyse(engine, pictures, question, inside, progress)
    with _written(request.profile, request.page) as (profile, html):
        profile.write_text(found.profile.text(), encoding="utf-8")
        html.write_text(page(found, request.clip.name, request.profile.name), encoding="utf-8")
    return found


@contextmanager
def _loaded(load: Callable[..., Engine], model: str, options: LoaderOptions, say: Notify) -> Iterator[ImageEngine]:
    engine = load(model, options, notice=say)
    try:
        if not isinstance(engine, ImageEngine):
            raise _not_an_image_model(model)
        yield engine
    finally:
        engine.close()


def clip_pictures(clip: Path, size: tuple[int, int], most: int) -> list[Picture]:
    """Return the first pictures of a clip, cropped to a size (width, height) as the live server does.

    Raises InputError for a clip that is too short.
    """
    source = open_source(clip, None)
    pictures: list[Picture] = []
    for frame in islice(source.frames(), most):
        own = (frame.image.shape[1], frame.image.shape[0])
        pictures.append(Placement.plan(own, size, Aspect.CROP, source.info.pixel_aspect).apply(frame.image))
    check_clip(len(pictures))
    return pictures


def _check_model(model: str) -> None:
    """Raise ModelError for a model that is no image model, before anything is loaded."""
    if kind_of(model).name != "image":
        raise _not_an_image_model(model)


def _not_an_image_model(model: str) -> ModelError:
    return ModelError(
        f"{model} is not an image model, and only those reuse across frames by presets.",
        "Name an image model, for example mini-image; docs/caching.md says what there is for video models.",
    )


def _check_outputs(request: AnalyseRequest) -> None:
    """Raise OutputError if a file is in the way or its folder cannot be written."""
    folder = request.stem.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(f"{folder} is not a folder that can be written.", "Choose another with --out FOLDER/NAME.")
    there = [file.name for file in (request.profile, request.page) if file.exists()]
    if there and not request.force:
        raise OutputError(f"{' and '.join(there)} exist already.", "Choose another name with --out, or give --force.")
    if request.clip.exists() and request.clip.resolve() in {request.profile.resolve(), request.page.resolve()}:
        raise InputError("The clip itself would be overwritten.", "Choose another name with --out.")


@contextmanager
def _written(*files: Path) -> Iterator[Sequence[Path]]:
    """Give a new file beside each of these; at the end they replace them, unless anything was raised."""
    parts = [file.with_name(f".{file.name}.part") for file in files]
    try:
        yield parts
        for part, file in zip(parts, files, strict=True):
            part.replace(file)
    except OSError as error:
        raise OutputError(f"{files[0].parent} cannot be written ({error}).", "Make room, or choose --out.") from error
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
