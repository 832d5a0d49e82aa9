"""Owns the noise of slots: seeded, drawn on the CPU so that all devices use the same noise, and the noise walk.

Independent of schedules and models. Only the entry noise walks: the noise of later steps is fixed, so that what it
produces (fine detail) stays in place while the picture changes; a prompt-only stream is then as smooth as its walk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

_QUARTER_DEG = 90.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotNoise:
    """entry: [F or 1, C, h, w], the noise that a slot starts from. later: [steps - 1, F or 1, C, h, w], the noise of
    each following step; [0, ...] where steps add none. float32 on the CPU; an axis of size 1 is shared by all frames of
    the slot."""

    entry: torch.Tensor
    later: torch.Tensor

    @property
    def fields(self) -> int:
        """How many fields of noise there are, the entry noise included."""
        return 1 + len(self.later)


class NoiseSource:
    """Draws the noise of one stream."""

    def __init__(self, frames_per_slot: int, latent_shape: tuple[int, int, int], max_steps: int) -> None:
        """latent_shape: (C, h, w) of one frame."""
        self._frames = frames_per_slot
        self._shape = latent_shape
        self._max_steps = max_steps
        self._bank_seed: int | None = None
        self._bank = torch.zeros((max_steps, 1, *latent_shape))
        self._walk: NoiseWalk | None = None

    def draw(self, seed: int, steps: int, *, slot: int | None, walk_deg: float | None) -> SlotNoise:
        """Return the noise of the next slot. slot: its number if slots draw their own noise, None if they share one.
        walk_deg: degrees per frame of the noise walk; None for slots with input frames."""
        if slot is not None:
            return self.free(seed, slot, steps)
        if walk_deg is not None:
            return self.walking(seed, steps, walk_deg)
        return self.locked(seed, steps)

    def locked(self, seed: int, steps: int) -> SlotNoise:
        """Return the same noise for every slot and frame: a still picture stays still."""
        bank = self._locked_bank(seed)
        return SlotNoise(entry=bank[0], later=bank[1:steps])

    def free(self, seed: int, slot: int, steps: int) -> SlotNoise:
        """Draw independent noise for every frame from (seed, slot * F + frame): the same for any frames_per_slot."""
        drawn = torch.empty((steps, self._frames, *self._shape))
        for frame in range(self._frames):
            random = _generator(seed, slot * self._frames + frame)
            for step in range(steps):
                drawn[step, frame] = torch.randn(self._shape, generator=random)
        return SlotNoise(entry=drawn[0], later=drawn[1:])

    def walking(self, seed: int, steps: int, degrees_per_frame: float) -> SlotNoise:
        """Return locked noise whose entry noise rotates by `degrees_per_frame` per frame; 0 holds it still."""
        bank = self._locked_bank(seed)
        if self._walk is None or self._walk.seed != seed:
            self._walk = NoiseWalk(seed, bank[0, 0])
        entry = torch.stack([self._walk.advance(degrees_per_frame) for _ in range(self._frames)])
        return SlotNoise(entry=entry, later=bank[1:steps])

    def reset(self) -> None:
        """Restart the walk."""
        self._walk = None

    def _locked_bank(self, seed: int) -> torch.Tensor:
        if self._bank_seed != seed:
            random = torch.Generator().manual_seed(seed)
            # A new tensor: slots in flight may still reference the old one.
            self._bank = torch.stack([torch.randn((1, *self._shape), generator=random) for _ in range(self._max_steps)])
            self._bank_seed = seed
        return self._bank


class NoiseWalk:
    """A walk on the sphere on which Gaussian noise concentrates: quarter circles through seeded anchors.

    n(angle) = cos(angle) u + sin(angle) v with v the next anchor, made orthogonal to u and scaled to its norm, so the
    norm (the variance) is kept and equal angles are equal distances. The first frame is the start itself.
    """

    def __init__(self, seed: int, start: torch.Tensor) -> None:
        self.seed = seed
        self._leg = 0
        self._angle_deg = 0.0
        self._started = False
        self._from = start.double()
        self._to = self._anchor()

    def advance(self, degrees: float) -> torch.Tensor:
        """Advance by `degrees` in [0, 90] (the first call stays at the start) and return the noise there, float32."""
        if self._started:
            self._angle_deg += degrees
        self._started = True
        while self._angle_deg >= _QUARTER_DEG:
            self._angle_deg -= _QUARTER_DEG
            self._leg += 1
            self._from = self._to
            self._to = self._anchor()
        angle = math.radians(self._angle_deg)
        return (math.cos(angle) * self._from + math.sin(angle) * self._to).float()

    def _anchor(self) -> torch.Tensor:
        random = _generator(self.seed, self._leg, 0x77616C6B)
        drawn = torch.randn(self._from.shape, generator=random).double()
        drawn -= (drawn * self._from).sum() / (self._from * self._from).sum() * self._from
        scaled: torch.Tensor = drawn * (self._from.norm() / drawn.norm())
        return scaled


def _generator(*key: int) -> torch.Generator:
    words = np.random.SeedSequence(key).generate_state(2, np.uint32)
    return torch.Generator().manual_seed((int(words[0]) << 31) ^ int(words[1]))
