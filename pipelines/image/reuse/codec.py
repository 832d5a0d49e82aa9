"""Owns how windows of a picture are encoded and decoded: from a crop with a margin, pasted into what is held.

Reads static buffers and never waits for the device, so it can be captured in a CUDA graph. Independent of streams and
decisions: pipelines/image/reuse/layout.py divides a batch.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from cache.features.lines import WindowPlaces, put
from pipelines.image.model import LatentCodec

from .layout import PassLayout, ReuseRow

Whole = Callable[[torch.Tensor], torch.Tensor]


class HeldPictures:
    """What streams hold between frames: the encoded input and the decoded output of each, by line.

    latents: [lines, h, w, C]. pictures: [lines, H, W, 3] uint8.
    """

    def __init__(self, lines: int, latents: tuple[int, int, int], factor: int, like: torch.Tensor) -> None:
        """latents: (C, h, w). like: of their dtype, on their device."""
        channels, rows, columns = latents
        self.latents = like.new_zeros((lines, rows, columns, channels))
        self.pictures = like.new_zeros((lines, rows * factor, columns * factor, 3), dtype=torch.uint8)


class ReusingCodec:
    """Encodes and decodes batches of one layout. cell: latents per cell of windows."""

    def __init__(self, codec: LatentCodec, held: HeldPictures, cell: int, work_dtype: torch.dtype) -> None:
        self._codec, self._held, self._cell, self._work_dtype = codec, held, cell, work_dtype

    def encode(self, layout: PassLayout, table: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
        """pictures: [N, H, W, 3] uint8 -> latents [N, C, h, w]."""
        return self._run(layout, table, pictures, self._held.latents, self._encode, scale=1).permute(0, 3, 1, 2)

    def decode(self, layout: PassLayout, table: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """latents: [N, C, h, w] -> pictures [N, H, W, 3] uint8."""
        source = latents.permute(0, 2, 3, 1)
        return self._run(layout, table, source, self._held.pictures, self._decode, scale=self._codec.factor)

    def _run(
        self,
        layout: PassLayout,
        table: torch.Tensor,
        source: torch.Tensor,
        held: torch.Tensor,
        whole: Whole,
        *,
        scale: int,
    ) -> torch.Tensor:
        """source: [N, ...] -> [N, ...] like held [lines, H, W, C], which has `scale` places per latent."""
        result = held.new_empty((source.shape[0], *held.shape[1:]))
        start = layout.full + layout.store
        if start:
            chosen, lines = table[: ReuseRow.TOP, :start]
            made = whole(source[chosen])
            result.index_copy_(0, chosen, made)
            if layout.store:
                held.index_copy_(0, lines[layout.full :], made[layout.full :])
        for sizes in layout.rounds:
            first = start
            for (rows, columns), count in sizes:
                chosen, line, row, column = table[:, start : start + count]
                places = WindowPlaces(line=line, row=row, column=column, size=(rows * self._cell, columns * self._cell))
                self._paste(places, chosen, source, held, whole, scale)
                start += count
            chosen, lines = table[: ReuseRow.TOP, first:start]
            result.index_copy_(0, chosen, held[lines])
        return result

    def _paste(
        self,
        places: WindowPlaces,
        chosen: torch.Tensor,
        source: torch.Tensor,
        held: torch.Tensor,
        whole: Whole,
        scale: int,
    ) -> None:
        """Compute windows from crops around them, and put them where they belong in what is held."""
        margin = self._codec.margin
        assert margin is not None, "only codecs with a margin encode windows"
        grid = (held.shape[1] // scale, held.shape[2] // scale)
        crops = _crops(places, grid, margin)
        made = whole(_taken(source, chosen, crops, source.shape[1] // grid[0]))
        entry = torch.arange(len(chosen), device=chosen.device)
        inside = WindowPlaces(
            line=entry, row=places.row - crops.row, column=places.column - crops.column, size=places.size
        )
        own = _taken(made, entry, inside, scale)
        put(held, places.line, places.scaled(scale).index(0, held.shape[2]), own)

    def _encode(self, pictures: torch.Tensor) -> torch.Tensor:
        images = pictures.permute(0, 3, 1, 2).to(self._work_dtype).div_(127.5).sub_(1.0)
        return self._codec.encode(images).permute(0, 2, 3, 1)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return to_pictures(self._codec.decode(latents.permute(0, 3, 1, 2)))


def to_pictures(images: torch.Tensor) -> torch.Tensor:
    """[N, 3, H, W] in [-1, 1] -> [N, H, W, 3] uint8."""
    return images.add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def _crops(places: WindowPlaces, grid: tuple[int, int], margin: int) -> WindowPlaces:
    """Return windows with a margin on each side, moved inward where they would leave the grid, all of one size."""
    size = (min(places.size[0] + 2 * margin, grid[0]), min(places.size[1] + 2 * margin, grid[1]))
    return WindowPlaces(
        line=places.line,
        row=(places.row - margin).clamp(0, grid[0] - size[0]),
        column=(places.column - margin).clamp(0, grid[1] - size[1]),
        size=size,
    )


def _taken(source: torch.Tensor, chosen: torch.Tensor, places: WindowPlaces, scale: int) -> torch.Tensor:
    """Return the windows [N, h, w, C] of the chosen entries [N] of source [entries, H, W, C], which has `scale` places
    per latent."""
    height, width = source.shape[1:3]
    index = places.scaled(scale).index(0, width) + (chosen * height * width)[:, None, None]
    return source.flatten(0, 2)[index]
