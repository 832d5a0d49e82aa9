"""Owns the check of a change of a stream's controls: all of it can be done, or none of it is.

Knows no slots; changes nothing.
"""

from __future__ import annotations

from pipelines.core.controls import Control, Controls, changeable
from pipelines.core.errors import ControlError

from .schedule import timesteps
from .state import ImageCore


def checked_controls(core: ImageCore, current: Controls, control: Control) -> Controls:
    """`current` with `control` applied. Raises ControlError, with the remedy, where that cannot be.

    Controls of the class *reopen* may be named, but only with the value they have (or 0: the model's own); controls of
    video models likewise.
    """
    candidate = changeable(current, control, engine="image")
    if candidate.prompt_change == "flush":
        raise ControlError("prompt_change cannot be 'flush' for an image model.", "It has no past: use cut or glide.")
    timesteps(core.model.schedule, candidate.steps, candidate.strength)
    core.check_engine_controls(control)
    for conditioner in core.conditioners:
        conditioner.check(candidate)
    return candidate
