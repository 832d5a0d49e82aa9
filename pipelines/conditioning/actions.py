"""Owns the action conditioner: how a viewer moves camera and subject in each latent frame of a video.

Independent of the network that takes the actions.
"""

from __future__ import annotations

from pipelines.core.controls import Controls
from pipelines.core.errors import ControlError

from .base import Conditioner, EngineParts, Inputs, NewSlot, PassView, StreamConditioner, StreamPlace

ACTION_NAMES = ("camera_x", "camera_y", "camera_zoom", "push_x", "push_y")
"""Order of the values, each in [-1, 1]: camera right and up, zoom in, subject right and up. Control names too."""
Action = tuple[float, ...]
"""The values for one latent frame, in the order of ACTION_NAMES."""
NO_ACTION: Action = (0.0,) * len(ACTION_NAMES)


def action_of(controls: Controls) -> Action:
    """Return the action that the controls describe."""
    return tuple(controls.value_of(name) for name in ACTION_NAMES)


class ActionConditioner(Conditioner):
    """Provides the keyword input `actions` [B, F, 5]. Latent frames keep the action of their chunk's admission."""

    name = "actions"
    controls = frozenset(ACTION_NAMES)
    columns = ACTION_NAMES

    def __init__(self, parts: EngineParts) -> None:
        self._model, self._taken = parts.model, "actions" in parts.takes

    @classmethod
    def of(cls, parts: EngineParts) -> ActionConditioner | None:
        """Create it for a video engine; None for an image engine."""
        return cls(parts) if parts.engine == "video" else None

    def check(self, controls: Controls) -> None:
        if self._taken:
            return
        for name, value in zip(ACTION_NAMES, action_of(controls), strict=True):
            if value:
                raise ControlError(
                    f"{name} cannot be {value:g}: the model {self._model} takes no actions.",
                    "Leave it at 0, or load a model that has an actions folder.",
                )

    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        return _StreamActions()

    def inputs(self, view: PassView) -> Inputs:
        return {"actions": view.columns(self.name)} if self._taken else {}


class _StreamActions(StreamConditioner):
    """The actions of one stream. A picture that starts a video has none."""

    def columns(self, slot: NewSlot) -> Action:
        return NO_ACTION if slot.is_picture else action_of(slot.controls)
