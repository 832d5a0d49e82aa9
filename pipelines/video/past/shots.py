"""Owns the memory of stories in several shots: pictures of earlier shots, encoded alone, before each new one.

ShotStream (2603.25746): context frames are spread evenly over each earlier shot; the first shot has an empty context
(latents of zero), or none. A cut of the prompt begins a new shot, as its stories have one caption for each.
"""

from __future__ import annotations

import torch

from cache.kv.policies.dual import DualPolicy

from .base import PastParts, StreamPast
from .clean_latents import CleanFrames

_Held = tuple[list[int], int, int]
"""Of an album: places in the store, stride, pictures seen."""


class ShotAlbum:
    """Pictures of one shot, evenly spaced: at most `capacity`; when it is full, every second one goes."""

    def __init__(self, capacity: int, size: tuple[int, int], device: torch.device) -> None:
        self._store = torch.zeros((capacity, *size, 3), dtype=torch.uint8, device=device)
        self._held: list[int] = []  # place in the store of the pictures 0, stride, 2 stride, ...
        self._stride, self._seen = 1, 0

    def clear(self) -> None:
        """Another shot begins."""
        self._held, self._stride, self._seen = [], 1, 0

    def add(self, picture: torch.Tensor) -> None:
        """picture: [H, W, 3] uint8."""
        if self._seen % self._stride == 0:
            if len(self._held) == len(self._store):
                self._held, self._stride = self._held[::2], self._stride * 2
            if self._seen % self._stride == 0:
                index = next(i for i in range(len(self._store)) if i not in self._held)
                self._store[index].copy_(picture)
                self._held.append(index)
        self._seen += 1

    def chosen(self, count: int) -> torch.Tensor:
        """`count` pictures [count, 3, H, W] in [0, 1], from the first to the last held."""
        last = len(self._held) - 1
        indices = [self._held[round(i * last / max(count - 1, 1))] for i in range(count)]
        return torch.stack([self._store[index] for index in indices]).permute(0, 3, 1, 2).float() / 255

    @property
    def store(self) -> torch.Tensor:
        """The pictures, [capacity, H, W, 3] uint8; always the same memory."""
        return self._store

    def facts(self) -> _Held:
        """A copy of what stands where in the store, for `restore`."""
        return list(self._held), self._stride, self._seen

    def restore(self, facts: _Held) -> None:
        """The store has been put back to when these were the facts."""
        held, self._stride, self._seen = facts
        self._held = list(held)

    @property
    def empty(self) -> bool:
        """No picture yet."""
        return not self._held


class ShotPast(StreamPast):
    """Albums of the latest shots, as many as the context can hold frames of, and the current one."""

    def __init__(self, parts: PastParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.policy, DualPolicy), parts.policy
        self._policy = parts.policy
        number = self._policy.context_frames + 1
        capacity = 2 * max(self._policy.context_frames, 1)
        self._albums = tuple(ShotAlbum(capacity, parts.size, parts.device) for _ in range(number))
        self._current = 0  # the album of the shot that runs; the next ones, in a circle, are of ever later shots
        self._shots = 0  # earlier ones
        self._begun = False  # the current shot has its context

    def context(self) -> list[CleanFrames]:
        if self._begun or not self._policy.context_of(self._shots):
            self._begun = True
            return []
        self._begun = True
        latents = self._pictures()
        return [CleanFrames(latents, self._parts.nothing.nothing(latents.shape[1]))]

    def _pictures(self) -> torch.Tensor:
        channels, height, width = self._parts.latent_shape
        if not self._shots:
            size = (channels, self._policy.context_frames, height, width)
            return torch.zeros(size, device=self._parts.device, dtype=self._parts.dtype)
        wanted = self._policy.context_shots(self._shots)
        number, current = len(self._albums), self._current
        albums = [self._albums[(current + back) % number] for back in range(1, number)][-self._shots :]
        first = self._shots - len(albums)
        chosen = [albums[shot - first].chosen(wanted.count(shot)) for shot in dict.fromkeys(wanted)]
        return self._parts.encode(torch.cat(chosen)).to(self._parts.dtype)

    def finished(self, clean: CleanFrames) -> None:
        """The cache has what it needs of a shot."""

    def decoded(self, frames: torch.Tensor) -> None:
        for picture in frames:
            self._albums[self._current].add(picture)

    def new_text(self) -> None:
        self.scene_cut()

    def scene_cut(self) -> None:
        if self._albums[self._current].empty:
            return
        super().scene_cut()
        self._shots += 1
        self._begun = False
        self._current = (self._current + 1) % len(self._albums)
        self._albums[self._current].clear()

    def restart(self) -> None:
        super().restart()
        for album in self._albums:
            album.clear()
        self._shots, self._begun = 0, False

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        return tuple(album.store for album in self._albums)

    def facts(self) -> tuple[tuple[_Held, ...], int, int, bool]:
        return tuple(album.facts() for album in self._albums), self._current, self._shots, self._begun

    def restore(self, facts: tuple[tuple[_Held, ...], int, int, bool]) -> None:
        held, self._current, self._shots, self._begun = facts
        for album, own in zip(self._albums, held, strict=True):
            album.restore(own)
