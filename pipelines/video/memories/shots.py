"""Owns the memory of stories in several shots: pictures of earlier shots, encoded alone, before each new one.

ShotStream (2603.25746): context frames are spread evenly over each earlier shot; the first shot has an empty context
(latents of zero). A cut of the prompt begins a new shot, as its stories have one caption for each.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch

from cache.kv_policies.dual import DualPolicy

from .base import Memory, MemoryParts


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
                place = next(i for i in range(len(self._store)) if i not in self._held)
                self._store[place].copy_(picture)
                self._held.append(place)
        self._seen += 1

    def chosen(self, count: int) -> torch.Tensor:
        """`count` pictures [count, 3, H, W] in [0, 1], from the first to the last held."""
        last = len(self._held) - 1
        places = [self._held[round(i * last / max(count - 1, 1))] for i in range(count)]
        return torch.stack([self._store[place] for place in places]).permute(0, 3, 1, 2).float() / 255

    def copy(self) -> ShotAlbum:
        """Another album with the same pictures."""
        other = ShotAlbum(len(self._store), (self._store.shape[1], self._store.shape[2]), self._store.device)
        other._store.copy_(self._store)
        other._held, other._stride, other._seen = list(self._held), self._stride, self._seen
        return other

    @property
    def empty(self) -> bool:
        """No picture yet."""
        return not self._held

    @property
    def bytes(self) -> int:
        """Memory of the store."""
        return self._store.nbytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _State:
    albums: tuple[ShotAlbum, ...]
    shots: int
    begun: bool


class ShotMemory(Memory):
    """Albums of the latest shots, as many as the context can hold frames of, and the current one."""

    def __init__(self, parts: MemoryParts) -> None:
        super().__init__(parts)
        assert isinstance(parts.policy, DualPolicy), parts.policy
        self._policy = parts.policy
        number = self._policy.context_frames + 1
        capacity = 2 * max(self._policy.context_frames, 1)
        self._albums = deque(ShotAlbum(capacity, parts.size, parts.device) for _ in range(number))
        self._shots = 0  # earlier ones
        self._begun = False  # the current shot has its context

    @property
    def bytes(self) -> int:
        return sum(album.bytes for album in self._albums)

    def context(self) -> list[torch.Tensor]:
        if self._begun or not self._policy.context_frames:
            self._begun = True
            return []
        self._begun = True
        return [self._pictures()]

    def _pictures(self) -> torch.Tensor:
        channels, height, width = self._parts.latent_shape
        if not self._shots:
            size = (channels, self._policy.context_frames, height, width)
            return torch.zeros(size, device=self._parts.device, dtype=self._parts.dtype)
        wanted = self._policy.context_shots(self._shots)
        albums = list(self._albums)[-self._shots - 1 : -1]
        first = self._shots - len(albums)
        chosen = [albums[shot - first].chosen(wanted.count(shot)) for shot in dict.fromkeys(wanted)]
        return self._parts.encode(torch.cat(chosen)).to(self._parts.dtype)

    def finished(self, latents: torch.Tensor) -> None:
        """The cache has what it needs of a shot."""

    def decoded(self, frames: torch.Tensor) -> None:
        for picture in frames:
            self._albums[-1].add(picture)

    def new_text(self) -> None:
        self.scene_cut()

    def scene_cut(self) -> None:
        if self._albums[-1].empty:
            return
        super().scene_cut()
        self._shots += 1
        self._begun = False
        self._albums.rotate(-1)
        self._albums[-1].clear()

    def restart(self) -> None:
        super().restart()
        for album in self._albums:
            album.clear()
        self._shots, self._begun = 0, False

    def state(self) -> _State:
        return _State(albums=tuple(album.copy() for album in self._albums), shots=self._shots, begun=self._begun)

    def restore(self, state: _State) -> None:
        self._albums = deque(album.copy() for album in state.albums)
        self._shots, self._begun = state.shots, state.begun
