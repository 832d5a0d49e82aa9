"""Owns the text conditioner: a stream's prompt and its transitions, written into the ring or into a text store.

The image engine keeps a slot's embeddings, of prompt and negative prompt, in the ring. A video engine keeps prompts as
keys and values in rows of a store. Independent of which row serves which pass: the chunk schedule decides that.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from cache.ring import RingField
from pipelines.core.conditions import BLENDS, ConditionPair, PromptCache, Transition, encode_controls
from pipelines.core.controls import Controls

from .base import Conditioner, EngineParts, Inputs, NewSlot, PassView, StreamConditioner, StreamPlace, TextStore


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptState:
    """A prompt at one point in time. key: equal for the same prompt of the same stream."""

    pair: ConditionPair = field(compare=False)
    key: tuple[int, int]


class TextConditioner(Conditioner):
    """Prompts and negative prompts. Slots in flight follow a prompt that cuts."""

    name = "text"
    controls = frozenset({"prompt", "negative_prompt", "prompt_blend"})
    rewound = True
    past_follows = True

    def __init__(self, parts: EngineParts) -> None:
        self._prompts, self._store = parts.prompts, parts.text_store
        if self._store is not None:
            return
        text = self._prompts.encode("")
        shapes = {"embeds": text.embeds.shape, **({} if text.pooled is None else {"pooled": text.pooled.shape})}
        self.fields = {name: RingField(shape=(2, *shape)) for name, shape in shapes.items()}
        self.branched = frozenset(self.fields)

    def stream(self, controls: Controls, place: StreamPlace) -> StreamText:
        pair = encode_controls(self._prompts, controls)
        if self._store is None:
            return RingText(self._prompts, pair)
        return StoredText(self._prompts, pair, self._store, place)

    def inputs(self, view: PassView) -> Inputs:
        """embeds [N, L, D] and, where the model takes it, pooled [N, P], float32. Nothing if there is a text store."""
        return {name: view.field(name) for name in self.fields}


class StreamText(StreamConditioner):
    """The prompt of a stream, including its transition to a target."""

    def __init__(self, prompts: PromptCache, pair: ConditionPair) -> None:
        self._prompts = prompts
        self._transition = Transition(pair)
        self._epoch = 0  # counts restored transitions, whose versions repeat

    @property
    def now(self) -> PromptState:
        """The prompt at its current point in the transition."""
        return PromptState(pair=self._transition.now, key=(self._epoch, self._transition.version))

    def change(self, controls: Controls) -> Callable[[], None]:
        target, frames, mix = (
            encode_controls(self._prompts, controls),
            self._frames(controls),
            BLENDS[controls.prompt_blend],
        )
        return lambda: self._transition.set_target(target, frames=frames, mix=mix)

    def _frames(self, controls: Controls) -> int:
        """Return the number of frames over which the prompt changes."""
        return controls.transition_frames

    def begin(self, slot: NewSlot) -> None:
        if slot.controls.prompt_change == "glide":
            self._transition.advance(len(slot.inputs))

    def state(self) -> Transition:
        """Return a copy of the transition."""
        return copy.copy(self._transition)

    def restore(self, state: object) -> None:
        assert isinstance(state, Transition), state
        self._transition = copy.copy(state)
        self._epoch += 1


class RingText(StreamText):
    """A prompt kept in the ring's fields embeds and pooled. While prompts cut, outdated slots are rewritten."""

    def tick(self, controls: Controls) -> bool:
        if controls.prompt_change != "cut":
            return False
        self._transition.advance(1)
        return True

    def write(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        pair = self._transition.now
        for cell, condition in enumerate((pair.positive, pair.negative)):
            fields["embeds"][cell].copy_(condition.embeds)
            if condition.pooled is not None:
                fields["pooled"][cell].copy_(condition.pooled)


class StoredText(StreamText):
    """A prompt kept in rows of a text store, rewritten in place and only if out of date. A cut is complete at once.
    Chunks in flight follow only while the prompt is changing, since their context is then encoded again."""

    def __init__(self, prompts: PromptCache, pair: ConditionPair, store: TextStore, place: StreamPlace) -> None:
        super().__init__(prompts, pair)
        self._store, self._place = store, place
        self._rows: dict[int, tuple[int, int]] = {}  # row -> key of the prompt that it holds

    def _frames(self, controls: Controls) -> int:
        return controls.transition_frames if controls.prompt_change == "glide" else 0

    def tick(self, controls: Controls) -> bool:
        if not self._transition.moving or controls.prompt_change == "glide":
            return False
        self._transition.advance(1)
        self.write_rows()
        return True

    def begin(self, slot: NewSlot) -> None:
        super().begin(slot)
        self.write_rows()

    def write_rows(self) -> None:
        """Update the first row and that of the negative prompt to the current prompt."""
        now = self.now
        self.serve(self._place.text_rows[0], now)
        if self._place.negative_text is not None:
            self._put(self._place.negative_text, now.pair.negative.embeds, now.key)

    def serve(self, row: int, written: object) -> None:
        assert isinstance(written, PromptState), written
        self._put(row, written.pair.positive.embeds, written.key)

    def _put(self, row: int, embeds: torch.Tensor, key: tuple[int, int]) -> None:
        if self._rows.get(row) != key:
            self._store.write(row, embeds)
            self._rows[row] = key
