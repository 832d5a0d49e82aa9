"""Owns the table of the frame stages that a user can choose by name. Independent of models and engines.

A new stage is one file here and one row in STAGES.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipelines.core.errors import InputError
from pipelines.core.frame_stages import FrameStage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSetting:
    """The engine that a stage is made for. width, height: of its frames, in pixels. device: "cpu", "cuda:0", ..."""

    width: int
    height: int
    device: str


MakeStage = Callable[[], FrameStage]
"""Makes the stage of one stream."""

STAGES: dict[str, Callable[[StageSetting], MakeStage]] = {}
"""Name -> what is called once for each engine, where networks are loaded and shared. None comes with Zoetrope yet;
examples/add_a_frame_stage.py adds two."""


def make_stages(names: Sequence[str], setting: StageSetting) -> tuple[MakeStage, ...]:
    """What makes the stages of each stream, in the order of `names`. Raises InputError for an unknown name."""
    for name in names:
        if name not in STAGES:
            known = f"Choose from: {', '.join(sorted(STAGES))}." if STAGES else "Leave it out: there is none yet."
            raise InputError(f"There is no frame stage {name!r}.", known)
    return tuple(STAGES[name](setting) for name in names)
