"""Owns the contract of a conditioner: what steers a slot of the image engine or a chunk of the video engine.

A conditioner declares its controls, the tensors that the ring holds for each slot (fields) and the floats of each row
of a batch (columns). It writes both when a slot is admitted and adds named inputs to every pass. Independent of both
engines.

A *frame* here is what one row of a network's batch represents: a picture in the image engine, a latent frame in the
video engine. Zeros in all fields and columns mean no condition.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, TypeAlias

import torch

from cache.ring import RingField
from pipelines.core.conditions import PromptCache
from pipelines.core.control_table import EngineKind
from pipelines.core.controls import Controls
from pipelines.core.types import Frame

Inputs: TypeAlias = Mapping[str, torch.Tensor]
"""The inputs of a pass besides latents and timesteps, by name. Most names are keyword inputs of the network; a
conditioner must only add those that the network takes. These names are understood for every network:

embeds, pooled: text embeddings, in the image engine.
latent_bias: [N, C, h, w], or [B, F, C, h, w] in the video engine, added to the latents that the network sees.
"""

LATENT_BIAS = "latent_bias"
NO_FIELDS: Mapping[str, RingField] = MappingProxyType({})


class TextStore(Protocol):
    """Stores the keys and values of prompts, in rows."""

    def write(self, row: int, embeddings: torch.Tensor) -> int:
        """Write the keys and values of embeddings [L, D] into a row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineParts:
    """What an engine provides to the factories of its conditioners.

    model: its name. latent_shape: (C, h, w). max_frames: of a slot or chunk. takes: optional keyword inputs that this
    network takes. text_store: where prompts are kept as keys and values; None: their embeddings are kept in the ring.
    """

    engine: EngineKind
    model: str
    device: torch.device
    latent_shape: tuple[int, int, int]
    max_frames: int
    takes: frozenset[str]
    prompts: PromptCache
    text_store: TextStore | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPlace:
    """The part of an engine that belongs to one stream. text_rows, negative_text: its rows of the text store."""

    text_rows: tuple[int, ...] = ()
    negative_text: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewSlot:
    """A slot or chunk at its admission. controls: of its stream. inputs: the frames that it redraws, None where
    prompt-only. frames: the number of rows of a batch that it takes. is_picture: whether it is a picture that starts a
    video."""

    controls: Controls
    inputs: tuple[Frame | None, ...]
    frames: int
    is_picture: bool = False


class PassView(Protocol):
    """The rows of one pass as conditioners see them, on the device. Used inside a tick, so nothing may wait.

    An extra row, which evaluates the negative prompt, shares the fields and columns of its owner.
    """

    @property
    def latents(self) -> torch.Tensor:
        """[N, C, h, w], or [B, C, F, h, w] in the video engine."""
        ...

    @property
    def timesteps(self) -> torch.Tensor:
        """[N] int64, or [B, F] float32 in the video engine."""
        ...

    def field(self, name: str) -> torch.Tensor:
        """[N, *shape], or [B, F, *shape]; for a branched field, the half that the row evaluates."""
        ...

    def columns(self, conditioner: str) -> torch.Tensor:
        """[N, columns] float32, or [B, F, columns]."""
        ...


class StreamConditioner:
    """A conditioner's part in one stream. `now` changes whenever `write` or `columns` would give something else."""

    @property
    def now(self) -> object:
        """The current condition; equal if nothing has changed. A slot keeps what was last written for it."""
        return None

    def change(self, controls: Controls) -> Callable[[], None]:
        """Prepare a change of its controls, doing all that can fail; the returned call commits it."""
        return lambda: None

    def tick(self, controls: Controls) -> bool:
        """Called before every tick. True: slots in flight follow, so those with an older condition are rewritten."""
        return False

    def begin(self, slot: NewSlot) -> None:
        """Called when a slot is admitted, before its `write` and `columns`."""

    def write(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        """Write the slot's fields, at its admission or while it is in flight.

        fields: by name, each [*shape] in the image engine, [frames, *shape] in the video engine.
        """

    def columns(self, slot: NewSlot) -> tuple[float, ...]:
        """Return the values of the conditioner's columns, which apply to every frame of the slot."""
        return ()

    def serve(self, row: int, written: object) -> None:
        """Make `row` of the text store serve, in the next tick, a slot whose `now` was `written`."""

    def restart(self) -> None:
        """Called when the stream starts over: what was kept of earlier slots must not affect later ones."""

    def close(self) -> None:
        """Called once when the stream closes: what it holds of the engine is given back."""

    def state(self) -> object:
        """Return what `restore` needs to rewind to this point."""
        return None

    def restore(self, state: object) -> None:
        """Restore a state returned by `state`."""


class Conditioner(ABC):
    """One way to steer, for all streams of an engine. Attributes are set in the class or in __init__.

    name: unique in an engine. controls: rows of the control table whose changes are passed to the stream's part.
    fields: what the ring holds for each slot (in the video engine: for each latent frame), by unique name; initially
    zeros. branched: fields [2, ...] of which extra rows see the second half and others the first. columns: names of the
    floats of each row. rewound: whether a rewind restores its controls. past_follows: whether a video's context frames
    are encoded again when slots in flight follow.
    """

    name: str
    controls: frozenset[str] = frozenset()
    fields: Mapping[str, RingField] = NO_FIELDS
    branched: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()
    rewound: bool = False
    past_follows: bool = False

    def check(self, controls: Controls) -> None:
        """Raise ControlError, with the remedy, if these controls are not possible."""
        return

    @abstractmethod
    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        """Create its part in a stream that opens with these controls."""

    @abstractmethod
    def inputs(self, view: PassView) -> Inputs:
        """Return its inputs for a pass. Must read only the view's buffers and its own, so that it can be captured in a
        CUDA graph. Inputs of the same name from several conditioners are summed."""


ConditionerFactory = Callable[[EngineParts], Conditioner | None]
"""Creates a conditioner for an engine; None: it does not apply to that engine."""
