"""Owns what one stream reuses: the decision for each of its frames, its lines, and when nothing kept is valid any more.

Whatever changes what a frame looks like besides its picture invalidates: a control, a prompt in transition, another
stream's change of the whole engine, noise of its own for each frame. Independent of batches and networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from cache.features.frames import Action, Choice, FrameReuse, ReuseSettings
from cache.features.price import ReuseCounts, ReusePrice
from pipelines.core.controls import Controls
from pipelines.core.errors import ControlError
from pipelines.core.types import Picture, ReuseReport
from pipelines.image.guidance import GUIDANCE_MODES, ExtraRow

from .layout import FULL_WORK, SlotWork

if TYPE_CHECKING:
    from pipelines.core.types import Frame
    from pipelines.image.slots import Slot
    from pipelines.image.state import ImageCore

OFF = "off"
_CELL = 8  # latents, at most, where there are no windows


class StreamReuse:
    """One stream's reuse. `configure` follows its controls, `choose` decides for each admitted frame."""

    def __init__(self, core: ImageCore) -> None:
        self._core = core
        self._preset = OFF
        self._frames: FrameReuse | None = None
        self._lines: tuple[int, int, int, int] | None = None  # the first; chains, steps, branches
        self._epoch = core.reuse_epoch
        self._conditions: object = None  # of the last slot
        self._choice: Choice | None = None  # for the last slot
        self._price = ReusePrice()
        self.counts = ReuseCounts()

    @property
    def on(self) -> bool:
        """Whether frames may reuse anything."""
        return self._frames is not None

    @property
    def report(self) -> ReuseReport | None:
        """What was taken over; None while the control is off."""
        if self._frames is None:
            return None
        counts = self.counts
        return ReuseReport(
            frames=counts.frames,
            hit_rate=counts.hit_rate,
            saved=1 - counts.computed,
            psnr_db=self._price.psnr_db,
            without_windows=self._without_windows(),
        )

    def _without_windows(self) -> str:
        if self._lines is not None or self._core.reuse_presets[self._preset].exact:
            return ""
        return self._core.windows_obstacle() or ""

    def observer(self) -> Callable[[Picture], None]:
        """Return what is to be called with the picture of the last slot when that is finished."""
        choice = self._choice
        whole = choice is not None and choice.action is not Action.WINDOWS
        return partial(self._price.see, still=choice.still if whole and choice is not None else None)

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

    def configure(self, controls: Controls) -> None:
        """Follow changed controls. Raises ControlError, with the remedy, if this stream cannot reuse as they ask."""
        settings = None if controls.reuse == OFF else self._core.reuse_presets[controls.reuse]
        wanted = None
        if settings is not None and not settings.exact and self._core.windows_obstacle() is None:
            extra = GUIDANCE_MODES[controls.guidance_mode].extra is not ExtraRow.NEVER
            wanted = (self._core.lanes.count, controls.steps, 2 if extra else 1)
        self.check(controls)
        had_windows = self._lines is not None
        if wanted != (None if self._lines is None else self._lines[1:]):
            self._release()
            if wanted is not None:
                self._lines = (self._core.reuse_memory().acquire(math.prod(wanted)), *wanted)
        if controls.reuse != self._preset or had_windows != (wanted is not None):  # whose cells are the network's
            self._preset = controls.reuse
            self._frames = None if settings is None else self._made()
        self.invalidate(())

    def reopen(self, controls: Controls) -> None:
        """Begin anew, with the memory of another runtime. Raises ControlError if that cannot reuse as asked."""
        self._preset, self._frames, self._lines = OFF, None, None
        self.configure(controls)

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

    def choose(
        self, frames: Sequence[Frame | None], controls: Controls, conditions: object, active: Sequence[Slot]
    ) -> SlotWork:
        """Return what to do with a new slot. conditions: what conditioners will write for it."""
        if self._frames is None:
            return FULL_WORK
        self.follow(active)
        if frames[0] is None or not controls.seed_lock:
            self.invalidate(())
            return self._count(Choice(action=Action.FULL, reason="noise of its own"))
        if self._conditions != conditions:
            self._frames.invalidate()
        self._conditions = conditions
        chain = 0 if self._lines is None else self._core.next_tick % self._lines[1]
        choice = self._frames.choose(frames[0].image, can_store=self._lines is not None, chain=chain)
        return self._count(choice, chain)

    def close(self) -> None:
        """Return the lines."""
        self._release()

    def _release(self) -> None:
        if self._lines is not None:
            self._core.reuse_memory().release(self._lines[0])
            self._lines = None

    def _made(self) -> FrameReuse:
        return frame_reuse(self._core, self._core.reuse_presets[self._preset])

    def _count(self, choice: Choice, chain: int = 0) -> SlotWork:
        assert self._frames is not None
        share = {Action.HOLD: 0.0, Action.WINDOWS: self._frames.share(choice.windows)}.get(choice.action, 1.0)
        self.counts, self._choice = self.counts.with_frame(choice.action, share), choice
        first, _, steps, branches = self._lines or (0, 1, 1, 1)
        line = first + chain * steps * branches
        return SlotWork(action=choice.action, windows=choice.windows, first_line=line, branches=branches)


def frame_reuse(core: ImageCore, settings: ReuseSettings) -> FrameReuse:
    """Return what decides for the frames of a stream of an engine."""
    cell = math.gcd(*core.latent_shape[1:], _CELL)
    if not settings.exact and core.windows_obstacle() is None:
        cell = core.reuse_memory().networks.cell
    return FrameReuse(settings, core.height, core.width, factor=core.codec.factor, cell=cell, chains=core.lanes.count)
