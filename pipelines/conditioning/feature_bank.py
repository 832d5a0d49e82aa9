"""Owns which lines of the feature bank belong to which image stream, and the epoch that every change begins.

Works with host integers: the bank itself, and what is done with the columns, is in pipelines/image/feature_bank/.
Independent of networks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipelines.core.control_table import CONTROLS, ENGINE_CONTROLS, Propagation
from pipelines.core.controls import Controls
from pipelines.core.errors import ControlError
from pipelines.core.types import Frame

from .base import Conditioner, EngineParts, Inputs, NewSlot, PassView, StreamConditioner, StreamPlace

FEATURE_BANK = "feature_bank"
"""The input with the columns: first line of the entry's stream or -1, epoch, strength of fusion. [N, 3] float32."""

MAX_LINES = 64
"""Of all streams of an engine."""

_UNUSED = (-1.0, 0.0, 0.0)
_KEPT = frozenset({"bank_strength", "depth"})  # what does not change what a frame looks like without a bank
_CUT = 0.16  # mean difference of two pictures, of the full range, from which they are of different scenes
_STRIDE_PX = 8


class FeatureBankConditioner(Conditioner):
    """Gives each stream whose control `bank` is on its own lines: two (prompt, negative prompt) for each of its steps.

    lines_needed: how many lines there must be for the streams that use the bank; 0: none does.
    """

    name = FEATURE_BANK
    controls = frozenset(
        n for n, s in CONTROLS.items() if "image" in s.engines and s.propagation is not Propagation.REOPEN
    )
    columns = ("first_line", "epoch", "strength")

    def __init__(self, parts: EngineParts) -> None:
        self._blocks: dict[StreamConditioner, range] = {}
        self._epochs = 0

    @classmethod
    def of(cls, parts: EngineParts) -> FeatureBankConditioner | None:
        """Create it for an image engine; None for a video engine."""
        return cls(parts) if parts.engine == "image" else None

    @property
    def lines_needed(self) -> int:
        """See the class."""
        return max((block.stop for block in self._blocks.values()), default=0)

    def stream(self, controls: Controls, place: StreamPlace) -> StreamConditioner:
        return StreamBank(self, controls)

    def inputs(self, view: PassView) -> Inputs:
        """Nothing while no stream uses the bank: the denoiser is then one that has none."""
        return {FEATURE_BANK: view.columns(self.name)} if self._blocks else {}

    def new_epoch(self) -> int:
        """Return an epoch later than all others, of all streams."""
        self._epochs += 1
        return self._epochs

    def new_epochs(self) -> None:
        """Begin a new epoch in every stream: something that all share has changed."""
        for part in self._blocks:
            assert isinstance(part, StreamBank)
            part.forget()

    def find(self, owner: StreamConditioner, lines: int) -> range:
        """Return lines in a row that no other stream has. Raises ControlError if there are none."""
        start = 0
        for block in sorted((b for o, b in self._blocks.items() if o is not owner), key=lambda block: block.start):
            if block.start - start >= lines:
                break
            start = block.stop
        if start + lines > MAX_LINES:
            raise ControlError(
                f"bank cannot be on: all {MAX_LINES} lines of the feature bank are in use.",
                f"This stream needs {lines}, two for each of its steps. Use fewer steps, or turn bank off elsewhere.",
            )
        return range(start, start + lines)

    def hold(self, owner: StreamConditioner, block: range | None) -> None:
        """Give a stream the lines that `find` returned, or take all from it."""
        self._blocks.pop(owner, None)
        if block is not None:
            self._blocks[owner] = block


class StreamBank(StreamConditioner):
    """The bank of one stream. A slot belongs to the epoch in which it was admitted, or to which a change took it."""

    def __init__(self, bank: FeatureBankConditioner, controls: Controls) -> None:
        self._bank, self._controls = bank, controls
        self._block: range | None = None
        self._follow = False
        self._scene: npt.NDArray[np.int16] | None = None
        self._epoch = bank.new_epoch()
        self._hold(self._found(controls), controls)

    @property
    def now(self) -> object:
        return None if self._block is None else (self._epoch, self._block)  # off: changes of others change nothing

    def change(self, controls: Controls) -> Callable[[], None]:
        before = self._controls
        names = {name for name in self._bank.controls if controls.values[name] != before.values[name]}
        block = self._found(controls)

        def commit() -> None:
            if names - _KEPT:
                self.forget()
            if names.intersection(ENGINE_CONTROLS):
                self._bank.new_epochs()
            self._follow = self._follow or any(_at_once(name, controls) for name in names - _KEPT)
            self._hold(block, controls)

        return commit

    def tick(self, controls: Controls) -> bool:
        """Slots in flight follow a change that applies to them; after any other they stay in the epoch before."""
        follow, self._follow = self._follow, False
        return follow

    def begin(self, slot: NewSlot) -> None:
        """A picture of another scene begins an epoch."""
        if not slot.controls.bank:
            self._scene = None
            return
        scene, last = thumbnail(slot.inputs[-1]), self._scene
        if is_cut(last, scene):
            self.forget()
        self._scene = scene

    def columns(self, slot: NewSlot) -> tuple[float, ...]:
        block = self._block
        if block is None or self._outdated(slot.controls):
            return _UNUSED
        return float(block.start), float(self._epoch), slot.controls.bank_strength

    def forget(self) -> None:
        """Begin a new epoch: what the bank holds is of no use to later slots."""
        self._epoch = self._bank.new_epoch()

    def restart(self) -> None:
        self.forget()
        self._scene = None

    def close(self) -> None:
        self._bank.hold(self, None)
        self._block = None

    def _outdated(self, born: Controls) -> bool:
        """Return whether a slot was admitted with something that has changed and that it keeps."""
        now = self._controls
        differing = (n for n in self._bank.controls - _KEPT if born.values[n] != now.values[n])
        return any(not _at_once(name, now) for name in differing)

    def _found(self, controls: Controls) -> range | None:
        return self._bank.find(self, lines_of(controls)) if controls.bank else None

    def _hold(self, block: range | None, controls: Controls) -> None:
        self._bank.hold(self, block)
        self._block, self._controls = block, controls


def lines_of(controls: Controls) -> int:
    """Return how many lines a stream with these controls needs."""
    return 2 * controls.steps


def _at_once(name: str, controls: Controls) -> bool:
    """Return whether a change of this control applies to slots in flight."""
    row = CONTROLS[name]
    cuts = controls.prompt_change == "cut" and row.cut_propagation is not None
    return (row.cut_propagation if cuts else row.propagation) is Propagation.NEXT_TICK


def thumbnail(frame: Frame | None) -> npt.NDArray[np.int16] | None:
    """Return every 8th pixel of a picture along each axis, [h, w, 3]; None where prompt-only."""
    return None if frame is None else frame.image[::_STRIDE_PX, ::_STRIDE_PX].astype(np.int16)


def is_cut(before: npt.NDArray[np.int16] | None, after: npt.NDArray[np.int16] | None) -> bool:
    """Return whether two thumbnails in a row are of different scenes: 97 in 100 pairs of photographs are, and no two
    frames of a camera that does not move by more than a sixteenth of the picture."""
    return before is not None and after is not None and bool(np.abs(after - before).mean() > _CUT * 255)
