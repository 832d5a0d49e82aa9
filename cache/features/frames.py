"""Owns what is done with each frame of a stream that reuses: hold the last result, recompute windows, or all of it.

Decided on the host from the input alone, so nothing waits for the device. Independent of tensors and networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from .motion import MotionMap
from .windows import Mask, Window, covering, raster, window_sizes


class Action(Enum):
    """What is done with a frame."""

    FULL = "full"  # all of it is computed, and nothing kept
    STORE = "store"  # all of it is computed, and kept for the frames after it
    WINDOWS = "windows"  # windows are computed, the rest is kept
    HOLD = "hold"  # it gets the result of the frame before


@dataclass(frozen=True, slots=True, kw_only=True)
class ReuseSettings:
    """How a stream reuses.

    exact: hold frames whose input repeats the last one to the bit, and nothing else; the other settings then have no
    effect. levels, noise_factor, margin: see `MotionMap`. sides, most_cells, most_windows: windows may have these
    shares of the picture's sides, together this share of its cells, and be this many. refresh_frames: a frame that
    would be held recomputes one window in turn if the last that many were held. store_frames: all of the picture is
    computed again after that many frames with windows where something moved. oldest_frames: and after that many frames
    of any kind. held_frames: where there are no windows, all of it is computed after that many were held.
    """

    exact: bool = False
    levels: float = 4.0
    noise_factor: float = 6.0
    margin: int = 1
    sides: tuple[float, ...] = (1 / 3, 5 / 12, 1 / 2, 7 / 12, 2 / 3)
    most_cells: float = 0.6
    most_windows: int = 3
    refresh_frames: int = 3
    store_frames: int = 24
    oldest_frames: int = 96
    held_frames: int = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What is done with a frame, and why. windows: for the action WINDOWS. still: which cells did not move, for
    measuring what reuse cost; None: not known."""

    action: Action
    reason: str
    windows: tuple[Window, ...] = ()
    still: Mask | None = None


@dataclass(slots=True, kw_only=True)
class _Chain:
    """Frames that take over from each other.

    known: it has computed a picture that is still valid. stored: with its features. calm: what moved in the frame
    before fitted into windows, so that storing is worth it. held, moving: frames since the last refresh, and with
    windows where something moved. age: all frames since the last whole picture. turn: the next window to refresh.
    """

    known: bool = False
    stored: bool = False
    calm: bool = False
    held: int = 0
    moving: int = 0
    age: int = 0
    turn: int = 0

    def whole(self, *, stored: bool) -> None:
        """A whole picture is computed."""
        self.known, self.stored = True, stored
        self.held = self.moving = self.age = 0


class FrameReuse:
    """Decides for one stream. `choose` is called for each frame that is admitted, in order.

    Where ticks run side by side, frames take over from those of their own chain, so that they need not wait for the
    frame before them.
    """

    def __init__(
        self,
        settings: ReuseSettings,
        height: int,
        width: int,
        *,
        factor: int,
        cell: int,
        chains: int = 1,
    ) -> None:
        """height, width: of its pictures in pixels. factor: pixels per latent. cell: latents per cell."""
        self.settings = settings
        self._motion = None
        if not settings.exact:
            self._motion = MotionMap(
                height,
                width,
                factor=factor,
                cell=cell,
                levels=settings.levels,
                noise_factor=settings.noise_factor,
                margin=settings.margin,
                chains=chains,
            )
            grid = self._motion.grid
            self._sizes = window_sizes(grid, settings.sides)
            self._turns = raster(grid, self._sizes[0])
        self._last: npt.NDArray[np.uint8] | None = None
        self._chains = [_Chain() for _ in range(chains)]

    def invalidate(self) -> None:
        """Nothing that was kept is valid any more: the next frame of each chain is computed as a whole."""
        self._last = None
        for chain in self._chains:
            chain.known = chain.stored = chain.calm = False

    def choose(self, picture: npt.NDArray[np.uint8], *, can_store: bool, chain: int = 0) -> Choice:
        """Return what to do with a picture [H, W, 3] uint8. can_store: whether there is memory to keep features in."""
        repeats = self._last is not None and np.array_equal(picture, self._last)
        self._last = picture
        if repeats:
            return Choice(action=Action.HOLD, reason="repeats")
        if self._motion is None:
            return Choice(action=Action.FULL, reason="new")
        return self._among_windows(self._motion, picture, can_store=can_store, number=chain)

    def share(self, windows: tuple[Window, ...]) -> float:
        """Return the share of the picture's cells that windows have."""
        if self._motion is None:
            return 0.0
        rows, columns = self._motion.grid
        return sum(window.cells for window in windows) / (rows * columns)

    def _among_windows(
        self, motion: MotionMap, picture: npt.NDArray[np.uint8], *, can_store: bool, number: int
    ) -> Choice:
        chain, settings = self._chains[number], self.settings
        moved = motion.moved(picture, number)
        chain.age += 1
        if not chain.known:
            return self._full(motion, number, "first")
        if not moved.any():
            return self._still(motion, number, moved, can_store=can_store)
        most = int(settings.most_cells * moved.size)
        windows = covering(moved, self._sizes, most_cells=most, most_windows=settings.most_windows)
        if windows is None or not can_store:
            chain.calm = False
            return self._full(motion, number, "moved")
        if not chain.stored and not chain.calm:
            chain.calm = True
            return self._full(motion, number, "moved little")
        if not chain.stored or chain.moving >= settings.store_frames or chain.age >= settings.oldest_frames:
            return self._store(motion, number, moved, "refresh" if chain.stored else "moved little")
        chain.moving += 1
        chain.held = 0
        motion.take(windows, number)
        return Choice(action=Action.WINDOWS, reason="moved", windows=windows, still=~moved)

    def _still(self, motion: MotionMap, number: int, moved: Mask, *, can_store: bool) -> Choice:
        """Nothing moved: hold, unless something is to be refreshed."""
        chain, settings = self._chains[number], self.settings
        chain.held += 1
        if chain.held <= (settings.refresh_frames if can_store else settings.held_frames):
            return Choice(action=Action.HOLD, reason="still")
        if not can_store:
            return self._full(motion, number, "refresh", ~moved)
        if not chain.stored or chain.age >= settings.oldest_frames:
            return self._store(motion, number, moved, "refresh")
        chain.held = 0
        window = self._turns[chain.turn % len(self._turns)]
        chain.turn += 1
        motion.take((window,), number)
        return Choice(action=Action.WINDOWS, reason="refresh", windows=(window,), still=~moved)

    def _full(self, motion: MotionMap, number: int, reason: str, still: Mask | None = None) -> Choice:
        motion.take(None, number)
        self._chains[number].whole(stored=False)
        return Choice(action=Action.FULL, reason=reason, still=still)

    def _store(self, motion: MotionMap, number: int, moved: Mask, reason: str) -> Choice:
        motion.take(None, number)
        self._chains[number].whole(stored=True)
        return Choice(action=Action.STORE, reason=reason, still=~moved)


PRESETS: Mapping[str, ReuseSettings] = MappingProxyType(
    {
        "exact": ReuseSettings(exact=True),
        "balanced": ReuseSettings(),
        "fastest": replace(
            ReuseSettings(),
            levels=6.0,
            margin=0,
            refresh_frames=7,
            store_frames=48,
            oldest_frames=192,
            held_frames=48,
            most_cells=0.7,
        ),
    }
)
"""By the name that a user gives."""
