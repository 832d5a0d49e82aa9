"""Owns the choice of how a part's inputs are recorded. Independent of recipes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.core.errors import ModelError
from pipelines.core.parts import Part, Tensors

if TYPE_CHECKING:
    from pipelines.core.contracts import Engine


def recorded(engine: Engine, part: Part, count: int) -> Sequence[Tensors]:
    """Return `count` inputs of a part at its shapes, recorded while the engine runs varied scenes without plans."""
    from pipelines.image.engine import ImageEngine
    from pipelines.video.engine import VideoEngine

    if isinstance(engine, ImageEngine):
        from .image import image_samples

        core, rows = engine.core, next(iter(part.inputs.values())).shape[0]
        return image_samples(core.model, {part.name: rows}, count, width=core.width, height=core.height)[part.name]
    if isinstance(engine, VideoEngine):
        from pipelines.files.vocabulary import world_file

        from .video import video_samples

        options, model = engine.core.options, engine.core.model
        return video_samples(model, [part], count, options=options, world=world_file(model.name))[part.name]
    raise ModelError(f"Inputs of {part.name} cannot be recorded.", "Use a backend that needs none.")
