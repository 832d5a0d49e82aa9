"""Owns the contract of a conditioner: what steers a slot of the image engine or a chunk of the video engine.

A conditioner declares its controls, what the ring holds of it for a slot (fields) and what each row of a batch says of
it (columns); it writes both at a slot's birth and adds named inputs to every pass. Independent of both engines.

A *frame* is here what one row of a network's batch stands for: a picture of the image engine, a latent frame of the
video engine. Zeros in all fields and columns mean: nothing.
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
"""What a pass gets beside latents and timesteps, by name. Most names are keyword inputs of the network; a conditioner
makes sure that the network takes its own. These mean something to every network:

embeds, pooled: of text, in the image engine.
latent_bias: [N, C, h, w], or [B, F, C, h, w] in the video engine, added to the latents that the network sees.
"""

LATENT_BIAS = "latent_bias"
NO_FIELDS: Mapping[str, RingField] = MappingProxyType({})


class TextStore(Protocol):
    """The keys and values of prompts, in rows."""

    def write(self, row: int, embeddings: torch.Tensor) -> int:
        """Put embeddings [L, D] into a row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EngineParts:
    """What an engine offers to the conditioners that it makes.

    model: its name. latent_shape: (C, h, w). max_frames: of a slot or chunk. takes: keyword inputs that the network
    has and others of its kind do not. text_store: where prompts are kept as keys and values; None: in the ring.
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
    """What one stream has of an engine. text_rows, negative_text: rows of the text store that are its own."""

    text_rows: tuple[int, ...] = ()
    negative_text: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NewSlot:
    """A slot or chunk as it is born. controls: the stream's. inputs: the frames that it redraws, None where there is
    only the prompt. frames: how many rows of a batch it takes. is_picture: a picture that begins a video."""

    controls: Controls
    inputs: tuple[Frame | None, ...]
    frames: int
    is_picture: bool = False


class PassView(Protocol):
    """The rows of one pass, as conditioners see them; on the device. Inside a tick: nothing in it waits.

    An extra row, which evaluates the negative prompt, has what its owner has.
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
        """[N, *shape], or [B, F, *shape]; of a branched field the half that the row evaluates."""
        ...

    def columns(self, conditioner: str) -> torch.Tensor:
        """[N, columns] float32, or [B, F, columns]."""
        ...


class StreamConditioner:
    """The part of a conditioner that one stream has. `now` changes whenever `write` or `columns` would."""

    @property
    def now(self) -> object:
        """What it says at this moment; equal where nothing has changed. A slot keeps what was written for it last."""
        return None

    def change(self, controls: Controls) -> Callable[[], None]:
        """One of its controls is to change: do all that can fail, and return the call that makes it hold."""
        return lambda: None

    def tick(self, controls: Controls) -> bool:
        """Before every tick. True: slots in flight follow; those that were written something else are written again."""
        return False

    def begin(self, slot: NewSlot) -> None:
        """A slot is born; `write` and `columns` come next."""

    def write(self, slot: NewSlot, fields: Mapping[str, torch.Tensor]) -> None:
        """Write the slot's share of the fields, at its birth or while it is in flight.

        fields: by name, each [*shape] in the image engine, [frames, *shape] in the video engine.
        """

    def columns(self, slot: NewSlot) -> tuple[float, ...]:
        """The values of the conditioner's columns for every frame of the slot."""
        return ()

    def serve(self, row: int, written: object) -> None:
        """In the tick that begins, `row` of the text store serves a slot whose `now` was `written`."""

    def state(self) -> object:
        """What a rewind to this moment puts back."""
        return None

    def restore(self, state: object) -> None:
        """Go back to a state."""


class Conditioner(ABC):
    """One way to steer, for all streams of an engine. Attributes are set in the class or in __init__.

    name: unique in an engine. controls: rows of the control table; a change of one is told to the stream's part.
    fields: what the ring holds for a slot (the video engine: for each latent frame), by a name that no other has;
    zeros at first. branched: fields [2, ...] of which an extra row sees the second half, others the first.
    columns: names of the floats of each row. rewound: a rewind puts back its controls, as they were. past_follows:
    when slots in flight follow, what a video remembers of its past is seen again as well.
    """

    name: str
    controls: frozenset[str] = frozenset()
    fields: Mapping[str, RingField] = NO_FIELDS
    branched: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()
    rewound: bool = False
    past_follows: bool = False

    def check(self, controls: Controls) -> None:
        """Raise ControlError, with the remedy, where these controls cannot be."""
        return

    @abstractmethod
    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        """Its part in a stream that opens with these controls."""

    @abstractmethod
    def inputs(self, view: PassView) -> Inputs:
        """What it adds to a pass. Reads the view's buffers and its own only, so that it can be captured in a CUDA
        graph. Inputs of one name by several conditioners are added up."""


ConditionerFactory = Callable[[EngineParts], Conditioner | None]
"""Makes a conditioner for an engine; None: it means nothing to that engine."""
