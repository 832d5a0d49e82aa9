"""Owns the validation of a change of a stream's controls, as a whole. Independent of slots; changes nothing."""

from __future__ import annotations

from pipelines.core.controls import Control, Controls, changeable
from pipelines.core.errors import ControlError

from .state import ImageCore
from .steps import slot_timesteps

EVENTS = Control(renew=False)
"""One-off requests, which reset themselves."""


def checked_controls(core: ImageCore, current: Controls, control: Control) -> Controls:
    """Return `current` with `control` applied. Raises ControlError, with the remedy, if that is not possible.

    Controls of the class *reopen* may be given, but only with their current value (or 0: the model's own); controls of
    video models only with their current value.
    """
    candidate = changeable(current, control, engine="image")
    if candidate.prompt_change == "flush":
        raise ControlError(
            "prompt_change cannot be 'flush' for an image model.",
            "An image model has no past to forget: use cut or glide.",
        )
    slot_timesteps(core.model.schedule, candidate, candidate.strength)
    core.check_engine_controls(control)
    if candidate.bank and candidate.reuse != "off":
        raise ControlError("bank and reuse cannot both be on.", "Set reuse to off, or bank.")
    if candidate.bank and (why := core.bank_obstacle()):
        raise ControlError(
            f"bank cannot be on: {why}.",
            "Leave it off, or use a UNet with plain attention on the backend eager or cuda-graph.",
        )
    for conditioner in core.conditioners:
        conditioner.check(candidate)
    return candidate
