"""Owns one stream's share of an engine: its rows in the caches, and the operations on all of them.

Independent of what a chunk is made of and when it begins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from cache.kv.cache import KVCache
from cache.kv.plan import Ledger
from cache.kv.recall import Kept
from pipelines.conditioning.frames import FrameConditions

from .passes import PassRequest
from .recache import RecachePass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamRows:
    """kv_rows: for each row of the stream (one, or one for each step) the cache row of the prompt and, with guidance,
    that of the negative prompt. text_rows, negative_text: rows of the text cache, the latter None without guidance.
    latents: [chunks, C, max frames, h, w], of this stream. fields: of conditioners, [chunks, max frames, *shape].
    """

    cache: KVCache
    kv_rows: tuple[tuple[int, ...], ...]
    text_rows: tuple[int, ...]
    negative_text: int | None
    latents: torch.Tensor
    fields: Mapping[str, torch.Tensor]

    @property
    def all_kv_rows(self) -> tuple[int, ...]:
        """Every cache row of the stream."""
        return tuple(row for pair in self.kv_rows for row in pair)

    def begin(self, index: int, frames: int, *, keep: int | None = None) -> None:
        """Begin a chunk in row `index` of the stream, for the prompt and the negative prompt alike."""
        for row in self.kv_rows[index]:
            self.cache.begin(row, frames, keep=keep)

    def ledger(self, index: int = 0) -> Ledger:
        """The ledger of row `index`; it is the same for both prompts."""
        return self.cache.ledger(self.kv_rows[index][0])

    def reset(self) -> None:
        """Discard all of the stream's past."""
        for row in self.all_kv_rows:
            self.cache.reset(row)

    def keep(self, frames: Sequence[int]) -> Kept:
        """Copies of frames of the first row, to pass them again; a stream with guidance has no such copies."""
        (row,) = self.kv_rows[0]
        return self.cache.keep(row, frames)

    def flush(self) -> None:
        """Discard all but the sink and the last frame."""
        for row in self.all_kv_rows:
            self.cache.flush(row)

    def scene_cut(self) -> None:
        """Make the next chunk begin a new scene."""
        for row in self.all_kv_rows:
            self.cache.scene_cut(row)

    def request(
        self,
        index: int,
        latents: torch.Tensor,
        timesteps: Sequence[float],
        text_row: int,
        *,
        conditions: FrameConditions,
        scale: float,
        view_frames: int | None = None,
        recache: RecachePass | None = None,
    ) -> PassRequest:
        """Return a request for a pass over row `index`."""
        texts = (text_row,) if self.negative_text is None else (text_row, self.negative_text)
        return PassRequest(
            latents=latents,
            timesteps=tuple(timesteps),
            conditions=conditions,
            kv_rows=self.kv_rows[index],
            text_rows=texts,
            view_frames=view_frames,
            recache=recache,
            scale=scale,
        )
