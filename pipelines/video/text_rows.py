"""Owns what one stream's rows of the text cache say: its prompt as it changes, written when a row is behind.

Knows prompts as embeddings and rows; no chunk.
"""

from __future__ import annotations

import copy

import torch

from ..conditions import BLENDS, ConditionPair, Transition
from ..controls import Controls
from .core import VideoCore
from .lane import Lane


class TextRows:
    """The prompt of a stream, on its way to a target. A row is rewritten in place, and only when it is behind."""

    def __init__(self, core: VideoCore, lane: Lane, pair: ConditionPair) -> None:
        self._core, self._lane = core, lane
        self._transition = Transition(pair)
        self._written: dict[int, tuple[int, int]] = {}  # row -> (epoch, version) that stands there
        self._epoch = 0  # counts replaced transitions, whose versions begin anew

    @property
    def moving(self) -> bool:
        """Whether the prompt is still on its way."""
        return self._transition.moving

    def aim(self, target: ConditionPair, controls: Controls) -> None:
        """Change to a prompt: over transition_frames where it glides, else at once."""
        glides = controls.text("prompt_change") == "glide"
        frames = controls.integer("transition_frames") if glides else 0
        self._transition.aim(target, frames=frames, mix=BLENDS[controls.text("prompt_blend")])

    def advance(self, frames: int) -> None:
        """Move on by so many frames."""
        self._transition.advance(frames)

    def write(self, row: int) -> None:
        """Bring a row of the prompt up to now, and the negative prompt's with it."""
        now, held = self._transition.now, (self._epoch, self._transition.version)
        self._put(row, now.positive.embeds, held)
        if self._lane.negative_text is not None:
            self._put(self._lane.negative_text, now.negative.embeds, held)

    def _put(self, row: int, embeds: torch.Tensor, held: tuple[int, int]) -> None:
        if self._written.get(row) != held:
            self._core.text_rows.write(row, embeds)
            self._written[row] = held

    def state(self) -> Transition:
        """A copy of the prompt's way, for `restore`."""
        return copy.copy(self._transition)

    def restore(self, state: Transition) -> None:
        """Go back to a state."""
        self._transition = copy.copy(state)
        self._epoch += 1
