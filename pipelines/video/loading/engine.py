"""Owns the way from a video model's name and a user's choices to an engine.

Knows which choice belongs to loading and which to the engine. Heavy libraries are imported when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from pipelines.core.errors import ControlError, InputError
from pipelines.core.tick_log import TickLog
from pipelines.video.engine import VideoEngine
from pipelines.video.model import MakeVideoRuntime
from pipelines.video.options import VideoOptions
from pipelines.video.runtime import plain_runtime

from .load import VideoLoadOptions, load_video_model

_RENAMED = {"kv_policy": "policy"}  # what the control table calls it


def load_video_engine(
    model: str,
    choices: Mapping[str, Any],
    *,
    frames_per_slot: int = 1,
    make_runtime: MakeVideoRuntime = plain_runtime,
    tick_log: TickLog | None = None,
    notice: Callable[[str], None],
) -> VideoEngine:
    """An engine for a video model, see `source.resolve_video`.

    choices: fields of VideoLoadOptions and VideoOptions by name (kv_policy is policy). make_runtime: of a backend.
    Raises InputError for an unknown choice, ControlError, and ModelError and its kinds.
    """
    if frames_per_slot != 1:
        raise ControlError(
            f"frames_per_slot cannot be {frames_per_slot} for a video model.", "Use chunk_frames: latents of 4 frames."
        )
    named = {_RENAMED.get(name, name): value for name, value in choices.items()}
    loading = {field.name for field in fields(VideoLoadOptions)} - {"notice"}
    running = {field.name for field in fields(VideoOptions)}
    unknown = sorted(named.keys() - loading - running)
    if unknown:
        raise InputError(
            f"A video model has no option {unknown[0]!r}.", f"It has: {', '.join(sorted(loading | running))}."
        )
    options = VideoOptions(**{name: value for name, value in named.items() if name in running})
    load = VideoLoadOptions(**{name: value for name, value in named.items() if name in loading}, notice=notice)
    return VideoEngine(load_video_model(model, load, make_runtime), options, tick_log=tick_log)
