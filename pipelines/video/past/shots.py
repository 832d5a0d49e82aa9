"""Owns the past of stories in several shots: frames of earlier shots, each encoded alone, precede every new shot.

ShotStream (2603.25746): context frames are spread evenly over each earlier shot; the first shot has an empty context
(latents of zero), or none. A cut of the prompt begins a new shot, as its stories have one caption per shot.
"""

from __future__ import annotations

import torch

from cache.kv.policies.dual import DualPolicy

from .base import PastParts, StreamPast
from .clean_latents import CleanFrames

_AlbumState = tuple[list[int], int, int]
"""Of an album: indices in the store, stride, frames seen."""


class ShotAlbum:
    """Evenly spaced frames of one shot, at most `capacity`; when it is full, every second one is dropped."""

    def __init__(self, capacity: int, size: tuple[int, int], device: torch.device) -> None:
        self._store = torch.zeros((capacity, *size, 3), dtype=torch.uint8, device=device)
        self._held: list[int] = []  # index in the store of the frames 0, stride, 2 stride, ...
        self._stride, self._seen = 1, 0

    def clear(self) -> None:
        """Begin a new shot."""
        self._held, self._stride, self._seen = [], 1, 0

    def add(self, frame: torch.Tensor) -> None:
        """Take the shot's next frame, [H, W, 3] uint8."""
        if self._seen % self._stride == 0:
            if len(self._held) == len(self._store):
                self._held, self._stride = self._held[::2], self._stride * 2
            if self._seen % self._stride == 0:
                index = next(i for i in range(len(self._store)) if i not in self._held)
                self._store[index].copy_(frame)
                self._held.append(index)
        self._seen += 1

    def chosen(self, count: int) -> torch.Tensor:
        """Return `count` frames [count, 3, H, W] in [0, 1], evenly spread from the first to the last one held."""
        last = len(self._held) - 1
        indices = [self._held[round(i * last / max(count - 1, 1))] for i in range(count)]
        return torch.stack([self._store[index] for index in indices]).permute(0, 3, 1, 2).float() / 255

    @property
    def store(self) -> torch.Tensor:
        """The frames, [capacity, H, W, 3] uint8; always the same memory."""
        return self._store

    def host_state(self) -> _AlbumState:
        """Return a copy of the index of the store, for `restore`."""
        return list(self._held), self._stride, self._seen

    def restore(self, state: _AlbumState) -> None:
        """Restore the index; the caller has restored the contents of `store`."""
        held, self._stride, self._seen = state
        self._held = list(held)

    @property
    def empty(self) -> bool:
        """Whether the shot has no frames yet."""
        return not self._held


class ShotPast(StreamPast):
    """Albums of the current shot and of as many earlier ones as the context has frames."""

    def __init__(self, parts: PastParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.policy, DualPolicy), parts.policy
        self._policy = parts.policy
        number = self._policy.context_frames + 1
        capacity = 2 * max(self._policy.context_frames, 1)
        self._albums = tuple(ShotAlbum(capacity, parts.size, parts.device) for _ in range(number))
        self._current = (
            0  # index of the current shot's album; the following ones, cyclically, are from oldest to latest
        )
        self._shots = 0  # number of earlier shots
        self._begun = False  # the current shot's context has been returned

    def context(self) -> list[CleanFrames]:
        if self._begun or not self._policy.context_of(self._shots):
            self._begun = True
            return []
        self._begun = True
        latents = self._context_latents()
        return [CleanFrames(latents, self._parts.nothing.nothing(latents.shape[1]))]

    def _context_latents(self) -> torch.Tensor:
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
        """Nothing to do: the cache keeps what it needs of the current shot."""

    def decoded(self, frames: torch.Tensor) -> None:
        for frame in frames:
            self._albums[self._current].add(frame)

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

    def host_state(self) -> tuple[tuple[_AlbumState, ...], int, int, bool]:
        return tuple(album.host_state() for album in self._albums), self._current, self._shots, self._begun

    def restore(self, state: tuple[tuple[_AlbumState, ...], int, int, bool]) -> None:
        held, self._current, self._shots, self._begun = state
        for album, own in zip(self._albums, held, strict=True):
            album.restore(own)
