"""Owns the frames that a stream has accepted and that are not in a chunk yet: how many fit, when a chunk is full.

Works on frames and counts; independent of latents, controls and the cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipelines.core.types import Frame

from .chunks import FullChunk
from .codecs.codec import frames_of

_MAX_FULL = 1  # full chunks that wait while another one is denoised

ChunkSize = Callable[[bool], int]
"""(whether it is the stream's first chunk) -> latent frames of a chunk that starts to fill now."""


class ChunkAssembler:
    """Fills one chunk at a time; a full one waits until it begins. All frames of a chunk are of one kind, input or
    prompt-only."""

    def __init__(self, size: ChunkSize, time_factor: int) -> None:
        self._size, self._time_factor = size, time_factor
        self.reset()

    def reset(self) -> None:
        """Discard everything; the next chunk is the stream's first."""
        self._filling: list[Frame | None] = []
        self._latents = 0  # latent frames of the chunk that is being filled
        self._wanted = 0  # frames that fill it
        self._full: deque[FullChunk] = deque()
        self._first = True

    def __len__(self) -> int:
        """Number of waiting frames, without padding."""
        return len(self._filling) + sum(chunk.kept for chunk in self._full)

    @property
    def next_full(self) -> FullChunk | None:
        """The full chunk that has waited longest."""
        return self._full[0] if self._full else None

    def pop(self) -> FullChunk:
        """Remove and return that chunk."""
        return self._full.popleft()

    @property
    def next_frames(self) -> int:
        """Frames missing from the chunk that the next frame goes into."""
        if self._filling:
            return self._wanted - len(self._filling)
        return frames_of(self._size(self._first), first=self._first, time_factor=self._time_factor)

    def has_room(self, frames: int, *, prompt_only: bool) -> bool:
        """Whether this many frames of a kind can be added now. A partly filled chunk of the other kind is padded
        first."""
        if self._filling and (self._filling[0] is None) != prompt_only:
            self.pad()
        room = self._wanted - len(self._filling) if self._filling else 0
        chunks = _MAX_FULL - len(self._full) - bool(self._filling)
        if chunks > 0:
            room += frames_of(self._size(self._first), first=self._first, time_factor=self._time_factor)
            room += (chunks - 1) * frames_of(self._size(False), first=False, time_factor=self._time_factor)
        return 0 < frames <= room

    def has_room_for_picture(self) -> bool:
        """Whether a picture can be added now. A partly filled chunk is padded first."""
        self.pad()
        return len(self._full) < _MAX_FULL

    def add(self, frame: Frame | None) -> None:
        """Add a frame, after `has_room` returned True."""
        if not self._filling:
            self._latents = self._size(self._first)
            self._wanted = frames_of(self._latents, first=self._first, time_factor=self._time_factor)
            self._first = False
        self._filling.append(frame)
        if len(self._filling) == self._wanted:
            self.pad()

    def add_picture(self, frame: Frame) -> None:
        """Add a picture that begins a new video, after `has_room_for_picture` returned True."""
        self._full.append(FullChunk(frames=(frame,), kept=1, latents=1, is_picture=True))
        self._first = False

    def pad(self) -> None:
        """Complete a partly filled chunk by repeating its last frame."""
        if not self._filling:
            return
        kept = len(self._filling)
        padding = [self._filling[-1]] * (self._wanted - kept)
        self._full.append(FullChunk(frames=(*self._filling, *padding), kept=kept, latents=self._latents))
        self._filling = []
