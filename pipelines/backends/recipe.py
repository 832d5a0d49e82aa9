"""Owns the contract of a recipe, which compiles parts to files and loads them again.

Independent of models, engines and of where the files are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from pipelines.core.contracts import Notify
from pipelines.core.parts import Part, PartCall, Tensors


class Recipe(Protocol):
    """One way to compile parts. `build` runs in a process of its own, `load` in the process that runs the engine."""

    @property
    def name(self) -> str: ...

    @property
    def title(self) -> str:
        """The same for people: "int8 (OpenVINO)"."""
        ...

    @property
    def steps(self) -> int:
        """How often `build` reports progress, about evenly in time; further reports do not count."""
        ...

    @property
    def samples(self) -> int:
        """How many recorded inputs of the part `build` wants, to calibrate with; 0: none."""
        ...

    @property
    def bakes_weights(self) -> bool:
        """Whether the file contains the weights, so that other weights need another file."""
        ...

    @property
    def loads_at_once(self) -> bool:
        """Whether `load` takes about a second or less, so that an engine may wait for it."""
        ...

    def open_axes(self, part: Part) -> Mapping[str, int]:
        """Return, by name, the axis of each input that may have any length in the files; other inputs are fixed."""
        ...

    def key(self, part: Part) -> Mapping[str, str]:
        """Return what determines the file besides recipe, part and shapes: device, versions, options."""
        ...

    def build(self, part: Part, samples: Sequence[Tensors], folder: Path, progress: Notify) -> None:
        """Compile the part into files in `folder`, which is empty. Raises ModelError, with the remedy."""
        ...

    def load(self, part: Part, folder: Path) -> PartCall:
        """Load what `build` wrote. part: of this process, with the weights to use. Raises ModelError."""
        ...

    def update(self, part: Part, call: PartCall) -> None:
        """Let a loaded call compute with the part's weights, which have changed; never called if it bakes weights.

        Raises ModelError, or PlanError, if it cannot: the call is then used no more.
        """
        ...
