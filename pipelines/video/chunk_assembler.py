"""Owns the frames that a stream has taken and no chunk has yet: how many fit, when a chunk of them is full.

Knows frames and counts; no latents, no controls and no cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pipelines.core.types import Frame

from .chunks import FullChunk
from .codecs.codec import frames_of

_MAX_FULL = 1  # full chunks that wait while another one is denoised

ChunkSize = Callable[[bool], int]
"""(whether it is the stream's first chunk) -> latent frames of a chunk that begins to fill now."""


class ChunkAssembler:
    """Fills one chunk at a time; a full one waits until it is born. Frames of one chunk are of one kind."""

    def __init__(self, size: ChunkSize, time_factor: int) -> None:
        self._size, self._time_factor = size, time_factor
        self.reset()

    def reset(self) -> None:
        """Forget everything; the next chunk is the stream's first."""
        self._filling: list[Frame | None] = []
        self._latents = 0  # of the chunk that is being filled
        self._wanted = 0  # its frames
        self._full: deque[FullChunk] = deque()
        self._first = True

    def __len__(self) -> int:
        """Frames that wait here and give outputs."""
        return len(self._filling) + sum(chunk.kept for chunk in self._full)

    @property
    def next_full(self) -> FullChunk | None:
        """The full chunk that waits longest."""
        return self._full[0] if self._full else None

    def pop(self) -> FullChunk:
        """Take that chunk away."""
        return self._full.popleft()

    @property
    def next_frames(self) -> int:
        """Frames that the chunk still lacks into which the next frame comes."""
        if self._filling:
            return self._wanted - len(self._filling)
        return frames_of(self._size(self._first), first=self._first, time_factor=self._time_factor)

    def has_room(self, frames: int, *, prompt_only: bool) -> bool:
        """Whether so many frames of a kind can be taken now. A chunk of the other kind that was being filled is padded:
        nothing more comes into it."""
        if self._filling and (self._filling[0] is None) != prompt_only:
            self.pad()
        room = self._wanted - len(self._filling) if self._filling else 0
        chunks = _MAX_FULL - len(self._full) - bool(self._filling)
        if chunks > 0:
            room += frames_of(self._size(self._first), first=self._first, time_factor=self._time_factor)
            room += (chunks - 1) * frames_of(self._size(False), first=False, time_factor=self._time_factor)
        return 0 < frames <= room

    def has_room_for_picture(self) -> bool:
        """Whether a picture can be taken now. What was being filled is padded."""
        self.pad()
        return len(self._full) < _MAX_FULL

    def add(self, frame: Frame | None) -> None:
        """Take a frame; `has_room` said that it can be."""
        if not self._filling:
            self._latents = self._size(self._first)
            self._wanted = frames_of(self._latents, first=self._first, time_factor=self._time_factor)
            self._first = False
        self._filling.append(frame)
        if len(self._filling) == self._wanted:
            self.pad()

    def add_picture(self, frame: Frame) -> None:
        """Take a picture with which the video begins anew; `has_room_for_picture` said that it can be."""
        self._full.append(FullChunk(frames=(frame,), kept=1, latents=1, is_picture=True))
        self._first = False

    def pad(self) -> None:
        """Make a chunk of what there is; it is filled up with its last frame."""
        if not self._filling:
            return
        kept = len(self._filling)
        padding = [self._filling[-1]] * (self._wanted - kept)
        self._full.append(FullChunk(frames=(*self._filling, *padding), kept=kept, latents=self._latents))
        self._filling = []
