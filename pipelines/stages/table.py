"""Owns the table of the frame stages that a user can choose by name. Independent of models and engines.

Adding a stage takes one file here and one row in STAGES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.core.errors import InputError
from pipelines.core.frame_stages import FrameStage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSetting:
    """The engine that a stage is made for. width, height: frame size in pixels. device: "cpu", "cuda:0", ..."""

    width: int
    height: int
    device: str


MakeStage = Callable[[], FrameStage]
"""Creates the stage of one stream."""

STAGES: dict[str, Callable[[StageSetting], MakeStage]] = {}
"""Name -> a function called once per engine; it loads any networks, which its streams share. Zoetrope has no stages of
its own yet; examples/add_a_frame_stage.py adds two."""


def make_stages(names: Sequence[str], setting: StageSetting) -> tuple[MakeStage, ...]:
    """Return functions that create a stream's stages, in the order of `names`. Raises InputError if one is unknown."""
    for name in names:
        if name not in STAGES:
            known = f"Choose from: {', '.join(sorted(STAGES))}." if STAGES else "Omit it: there are none yet."
            raise InputError(f"There is no frame stage {name!r}.", known)
    return tuple(STAGES[name](setting) for name in names)
