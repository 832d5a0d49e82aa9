"""Owns what passes keep for the passes after them: one line for each stream and step.

A line holds, for each level of a network (halvings of the picture), the inputs of its convolutions with a border of
zeros around them, the keys and values of its self-attention, the scales of its normalisations, and the result of the
pass. Everything is allocated once; windows read and write by index. Independent of networks, streams and decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What a pass kept, of N rows.

    maps: by level, the inputs of the convolutions [N, H, W, C], channels of successive layers side by side. tokens: by
    level, keys and values of self-attention [N, H, W, C] likewise; C is 0 where a level has none. scales: [N, S], what
    each channel of each normalisation is multiplied by, and what is then added.
    """

    maps: tuple[torch.Tensor, ...]
    tokens: tuple[torch.Tensor, ...]
    scales: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WindowPlaces:
    """Where N windows of one size are, on the device. line, row, column: [N] int64; row and column in latents."""

    line: torch.Tensor
    row: torch.Tensor
    column: torch.Tensor
    size: tuple[int, int]

    def scaled(self, scale: int) -> WindowPlaces:
        """Return them in units of which a latent has `scale`."""
        if scale == 1:
            return self
        height, width = self.size
        size = (height * scale, width * scale)
        return WindowPlaces(line=self.line, row=self.row * scale, column=self.column * scale, size=size)

    def index(self, level: int, width: int, *, border: int = 0) -> torch.Tensor:
        """Return [N, h, w] int64: the place of each token at a level within a map of that width, with `border` tokens
        more on each side, which the map has too."""
        rows, columns = (side >> level for side in self.size)
        device = self.line.device
        down = torch.arange(rows + 2 * border, device=device) * (width + 2 * border)
        along = torch.arange(columns + 2 * border, device=device)
        start = (self.row >> level) * (width + 2 * border) + (self.column >> level)
        return start[:, None, None] + down[:, None] + along


class FeatureLines:
    """The storage of `count` lines for pictures of `rows` x `columns` latents."""

    def __init__(self, count: int, rows: int, columns: int, like: Features, result: torch.Tensor) -> None:
        """like: what a pass of whole pictures kept; result: [N, C, rows, columns], what it returned. Their dtypes,
        devices and numbers of channels are those of the lines."""
        self.count, self._columns = count, columns
        self._maps = tuple(
            m.new_zeros((count, (rows >> level) + 2, (columns >> level) + 2, m.shape[3]))
            for level, m in enumerate(like.maps)
        )
        self._tokens = tuple(
            t.new_zeros((count, rows >> level, columns >> level, t.shape[3]))
            if t.shape[3]
            else t.new_zeros(count, 0, 0, 0)
            for level, t in enumerate(like.tokens)
        )
        self._scales = like.scales.new_zeros((count, like.scales.shape[1]))
        self._results = result.new_zeros((count, rows, columns, result.shape[1]))

    @property
    def bytes(self) -> int:
        """Memory that the lines take."""
        tensors = (*self._maps, *self._tokens, self._scales, self._results)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def write(self, lines: torch.Tensor, features: Features, result: torch.Tensor) -> None:
        """Keep what a pass of N whole pictures returned in distinct lines [N] int64."""
        for kept, new in zip(self._maps, features.maps, strict=True):
            kept[:, 1:-1, 1:-1].index_copy_(0, lines, new)
        for kept, new in zip(self._tokens, features.tokens, strict=True):
            if new.shape[3]:
                kept.index_copy_(0, lines, new)
        self._scales.index_copy_(0, lines, features.scales)
        self._results.index_copy_(0, lines, result.permute(0, 2, 3, 1))

    def around(self, places: WindowPlaces) -> Features:
        """Return what windows need: maps are patches [N, h + 2, w + 2, C], tokens are whole [N, H, W, C]."""
        maps = []
        for level, kept in enumerate(self._maps):
            tokens = kept.shape[1] * kept.shape[2]
            index = places.index(level, kept.shape[2] - 2, border=1) + (places.line * tokens)[:, None, None]
            patches = kept.flatten(0, 2).index_select(0, index.flatten())
            maps.append(patches.view(*index.shape, kept.shape[3]))
        return Features(
            maps=tuple(maps),
            tokens=tuple(kept.index_select(0, places.line) for kept in self._tokens),
            scales=self._scales.index_select(0, places.line),
        )

    def token_index(self, places: WindowPlaces) -> tuple[torch.Tensor, ...]:
        """Return, by level, the index [N, h w] of each of the windows' tokens among those of the picture."""
        return tuple(places.index(level, self._columns >> level).flatten(1) for level in range(len(self._maps)))

    def update(self, places: WindowPlaces, features: Features, result: torch.Tensor) -> None:
        """Keep what N windows computed: maps and tokens [N, h, w, C], result [N, C, h, w]. Windows of one line must
        not overlap, or give the same values where they do."""
        for level, (kept, new) in enumerate(zip(self._maps, features.maps, strict=True)):
            width = kept.shape[2]
            index = places.index(level, width - 2, border=1)[:, 1:-1, 1:-1]
            put(kept, places.line, index, new)
        for level, (kept, new) in enumerate(zip(self._tokens, features.tokens, strict=True)):
            if new.shape[3]:
                put(kept, places.line, places.index(level, kept.shape[2]), new)
        put(self._results, places.line, places.index(0, self._columns), result.permute(0, 2, 3, 1))

    def result(self, lines: torch.Tensor) -> torch.Tensor:
        """Return the results [N, C, rows, columns] of lines [N] int64."""
        return self._results.index_select(0, lines).permute(0, 3, 1, 2)


def put(kept: torch.Tensor, line: torch.Tensor, index: torch.Tensor, new: torch.Tensor) -> None:
    """Write [N, h, w, C] into kept [lines, H, W, C] at the places [N, h, w] within each line."""
    where = index + (line * kept.shape[1] * kept.shape[2])[:, None, None]
    kept.flatten(0, 2).index_copy_(0, where.flatten(), new.flatten(0, 2))
