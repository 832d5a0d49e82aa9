"""Owns what one stream reuses: the decision for each of its frames, its lines, and when nothing kept is valid any more.

Whatever changes what a frame looks like besides its picture invalidates: a control, a prompt in transition, another
stream's change of the whole engine, noise of its own for each frame. Independent of batches and networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cache.features.frames import PRESETS, Action, Choice, FrameReuse
from pipelines.core.controls import Controls
from pipelines.core.errors import ControlError
from pipelines.image.guidance import GUIDANCE_MODES, ExtraRow

from .layout import FULL_WORK, SlotWork

if TYPE_CHECKING:
    from pipelines.image.slots import Birth, Slot
    from pipelines.image.state import ImageCore

OFF = "off"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseCounts:
    """Frames of a stream by what was done with them. cells: share of the cells of all frames that were computed,
    summed over frames."""

    full: int = 0
    store: int = 0
    windows: int = 0
    hold: int = 0
    cells: float = 0.0

    @property
    def frames(self) -> int:
        """All frames."""
        return self.full + self.store + self.windows + self.hold

    @property
    def hit_rate(self) -> float:
        """Share of the frames that reused anything."""
        return (self.windows + self.hold) / self.frames if self.frames else 0.0

    @property
    def computed(self) -> float:
        """Share of all cells that were computed."""
        return self.cells / self.frames if self.frames else 1.0


class StreamReuse:
    """One stream's reuse. `configure` follows its controls, `choose` decides for each admitted frame."""

    def __init__(self, core: ImageCore) -> None:
        self._core = core
        self._preset = OFF
        self._frames: FrameReuse | None = None
        self._lines: tuple[int, int, int] | None = None  # first line, steps, branches
        self._epoch = core.reuse_epoch
        self._conditions: Mapping[str, object] | None = None
        self.counts = ReuseCounts()

    @property
    def on(self) -> bool:
        """Whether frames may reuse anything."""
        return self._frames is not None

    def check(self, controls: Controls) -> None:
        """Raise ControlError, with the remedy, if a stream cannot reuse as these controls ask."""
        if controls.reuse == OFF:
            return
        core = self._core
        if core.frames_per_slot != 1:
            raise ControlError(
                f"reuse cannot be {controls.reuse!r} with frames_per_slot {core.frames_per_slot}.",
                "Set reuse to off, or open the engine with frames_per_slot 1.",
            )
        why = None if PRESETS[controls.reuse].exact else core.reuse_obstacle()
        if why is not None:
            raise ControlError(f"reuse cannot be {controls.reuse!r}: {why}.", "Set reuse to exact or off.")

    def configure(self, controls: Controls) -> None:
        """Follow changed controls. Raises ControlError, with the remedy, if this stream cannot reuse as they ask."""
        settings = None if controls.reuse == OFF else PRESETS[controls.reuse]
        wanted = None
        if settings is not None and not settings.exact:
            extra = GUIDANCE_MODES[controls.guidance_mode].extra is not ExtraRow.NEVER
            wanted = (controls.steps, 2 if extra else 1)
        self.check(controls)
        if wanted != (None if self._lines is None else self._lines[1:]):
            self._release()
            if wanted is not None:
                self._lines = (self._core.reuse_memory().acquire(wanted[0] * wanted[1]), *wanted)
        if controls.reuse != self._preset:
            self._preset = controls.reuse
            self._frames = None if settings is None else self._made()
        self.invalidate(())

    def invalidate(self, active: Sequence[Slot]) -> None:
        """Compute the slots in flight and the next frame as a whole."""
        self._epoch = self._core.reuse_epoch
        self._conditions = None
        for slot in active:
            slot.work = FULL_WORK
        if self._frames is not None:
            self._frames.invalidate()

    def follow(self, active: Sequence[Slot]) -> None:
        """Invalidate if something that all streams share has changed. Called before each tick."""
        if self._epoch != self._core.reuse_epoch:
            self.invalidate(active)

    def choose(self, birth: Birth, conditions: Mapping[str, object], active: Sequence[Slot]) -> SlotWork:
        """Return what to do with a new slot. conditions: what conditioners wrote for it."""
        if self._frames is None:
            return FULL_WORK
        self.follow(active)
        picture = birth.frames[0]
        if picture is None or not birth.controls.seed_lock:
            self.invalidate(())
            return self._count(Choice(action=Action.FULL, reason="noise of its own"))
        if self._conditions is not None and self._conditions != conditions:
            self._frames.invalidate()
        self._conditions = dict(conditions)
        return self._count(self._frames.choose(picture.image, can_store=self._lines is not None))

    def close(self) -> None:
        """Return the lines."""
        self._release()

    def _release(self) -> None:
        if self._lines is not None:
            self._core.reuse_memory().release(self._lines[0])
            self._lines = None

    def _made(self) -> FrameReuse:
        core, settings = self._core, PRESETS[self._preset]
        if settings.exact:
            return FrameReuse(settings, core.height, core.width, factor=core.codec.factor, cell=1)
        networks = core.reuse_memory().networks
        return FrameReuse(
            settings,
            core.height,
            core.width,
            factor=core.codec.factor,
            cell=networks.cell,
            few_sizes=networks.few_sizes,
        )

    def _count(self, choice: Choice) -> SlotWork:
        name, counts = choice.action.value, self.counts
        assert self._frames is not None
        share = {Action.HOLD: 0.0, Action.WINDOWS: self._frames.share(choice.windows)}.get(choice.action, 1.0)
        self.counts = replace(counts, **{name: getattr(counts, name) + 1}, cells=counts.cells + share)
        first, _, branches = self._lines or (0, 0, 1)
        return SlotWork(action=choice.action, windows=choice.windows, first_line=first, branches=branches)
