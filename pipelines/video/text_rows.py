"""Owns what one stream's rows of the text cache say: its prompt as it changes, written when a row is behind.

Knows prompts as embeddings and rows; no chunk.
"""

from __future__ import annotations

import copy

import torch

from pipelines.core.conditions import BLENDS, ConditionPair, Transition
from pipelines.core.controls import Controls

from .chunks import PromptState
from .state import VideoCore
from .stream_rows import StreamRows


class TextRows:
    """The prompt of a stream, on its way to a target. A row is rewritten in place, and only when it is behind."""

    def __init__(self, core: VideoCore, stream_rows: StreamRows, pair: ConditionPair) -> None:
        self._core, self._stream_rows = core, stream_rows
        self._transition = Transition(pair)
        self._written: dict[int, tuple[int, int]] = {}  # row -> key of what stands there
        self._epoch = 0  # counts replaced transitions, whose versions begin anew

    @property
    def moving(self) -> bool:
        """Whether the prompt is still on its way."""
        return self._transition.moving

    def aim(self, target: ConditionPair, controls: Controls) -> None:
        """Change to a prompt: over transition_frames where it glides, else at once."""
        glides = controls.prompt_change == "glide"
        frames = controls.transition_frames if glides else 0
        self._transition.aim(target, frames=frames, mix=BLENDS[controls.prompt_blend])

    def advance(self, frames: int) -> None:
        """Move on by so many frames."""
        self._transition.advance(frames)

    @property
    def now(self) -> PromptState:
        """The prompt where it is now."""
        return PromptState(pair=self._transition.now, key=(self._epoch, self._transition.version))

    def write(self) -> None:
        """Bring the first row, and that of the negative prompt, up to now."""
        now = self.now
        self.put(self._stream_rows.text_rows[0], now)
        if self._stream_rows.negative_text is not None:
            self._put(self._stream_rows.negative_text, now.pair.negative.embeds, now.key)

    def put(self, row: int, text: PromptState) -> None:
        """Have a row hold a prompt."""
        self._put(row, text.pair.positive.embeds, text.key)

    def _put(self, row: int, embeds: torch.Tensor, key: tuple[int, int]) -> None:
        if self._written.get(row) != key:
            self._core.text_rows.write(row, embeds)
            self._written[row] = key

    def state(self) -> Transition:
        """A copy of the prompt's way, for `restore`."""
        return copy.copy(self._transition)

    def restore(self, state: Transition) -> None:
        """Go back to a state."""
        self._transition = copy.copy(state)
        self._epoch += 1
