"""Owns the recomputation of windows by an image codec: crop, encode or decode, paste into the result held per row.

A crop has the halo that the codec's receptive field asks for, and one of a few shapes, so that plans and graphs can
serve it. With the exact halo the held result equals a full call's; with a smaller one it differs a little
(docs/caching-tiles.md). Independent of who decides what has changed, of streams and of backends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from cache.features.reach import UnknownOperationError, analytic_field
from cache.features.receptive import ReceptiveField, Unbounded
from pipelines.core.errors import ModelError
from pipelines.image.model import LatentCodec

Shape = tuple[int, int]
"""(height, width) in latents."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecFields:
    """The receptive fields of a codec: of latents in pixels, and of pixels in latents."""

    encoder: ReceptiveField
    decoder: ReceptiveField


def codec_fields(autoencoder: Any) -> CodecFields:
    """Measure an autoencoder with `encoder`, `decoder` and a configuration as in diffusers.

    Raises ModelError if it normalises over the picture or attends to all of it, as AutoencoderKL does: then every
    output depends on every input.
    """
    remedy = "Use a tiny autoencoder: --autoencoder tiny."
    fields: list[ReceptiveField] = []
    channels = {"encoder": int(autoencoder.config.in_channels), "decoder": int(autoencoder.config.latent_channels)}
    for name, network in (("encoder", autoencoder.encoder), ("decoder", autoencoder.decoder)):
        try:
            field = analytic_field(network, channels[name], size=1024 if name == "encoder" else 128)
        except UnknownOperationError as error:
            raise ModelError(f"The receptive field of the {name} is not known: {error}.", remedy) from None
        if isinstance(field, Unbounded):
            raise ModelError(f"The {name} cannot run on a part of a picture, because of {field.because}.", remedy)
        fields.append(field)
    return CodecFields(encoder=fields[0], decoder=fields[1])


@dataclass(frozen=True, slots=True)
class Span:
    """A crop along one axis, in latents. start: its first one. keep: the half-open range, counted from the start of
    the crop, of those whose halo is complete: the end of the picture needs none."""

    start: int
    keep: tuple[int, int]

    @classmethod
    def around(cls, first: int, stop: int, *, length: int, side: int, halo: int) -> Span | None:
        """A crop of `side` of an axis of `length` that covers first..stop and its halo; None if it is too short."""
        assert 0 <= first < stop <= length
        assert side <= length
        needed_first, needed_stop = max(0, first - halo), min(length, stop + halo)
        if needed_stop - needed_first > side:
            return None
        start = min(needed_first, length - side)
        return cls(start, (halo if start else 0, side - halo if start + side < length else side))


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop of a picture, in latents. shape: one of the table's."""

    rows: Span
    columns: Span
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class CropTable:
    """Which crop serves a window of a picture of `size` latents. halo: in latents. shapes: those that can be served."""

    size: Shape
    halo: int
    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, size: Shape, halo: int, shares: Sequence[float] = (0.5, 0.75)) -> CropTable:
        """Shapes whose sides are these shares of the picture's, or all of it; smallest first, without the picture."""
        heights, widths = ({*(max(1, round(length * share)) for share in shares), length} for length in size)
        shapes = {(height, width) for height in heights for width in widths} - {size}
        return cls(size=size, halo=halo, shapes=tuple(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))))

    def choose(self, first: tuple[int, int], stop: tuple[int, int]) -> Crop | None:
        """Return the smallest crop that makes the latents (or their pixels) from `first` to before `stop`, as (row,
        column), new; None if only the whole picture does."""
        for shape in self.shapes:
            rows, columns = (
                Span.around(first[axis], stop[axis], length=self.size[axis], side=shape[axis], halo=self.halo)
                for axis in (0, 1)
            )
            if rows is not None and columns is not None:
                return Crop(rows, columns, shape)
        return None


def positions(crops: Sequence[Crop]) -> torch.Tensor:
    """Return what a device needs of crops of one shape: [N, 6] int64 on the host. Whoever runs the tick uploads it."""
    assert len({crop.shape for crop in crops}) == 1
    return torch.tensor(
        [[value for span in (crop.rows, crop.columns) for value in (span.start, *span.keep)] for crop in crops]
    )


class TiledCodec:
    """Keeps the last latents and pictures of `rows` rows, and makes windows of them new.

    Several streams are batch entries with rows of their own; a call has at most one window for each row. Positions
    and rows are tensors on the device and shapes are fixed, so that a call neither waits nor allocates state, and can
    be captured in a CUDA graph. What is held of a row is only defined after a full call for it.
    """

    def __init__(
        self, codec: LatentCodec, *, size: Shape, rows: int, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """size: of a picture, in latents. dtype: of the codec's results."""
        self.codec = codec
        height, width = size
        self._factor = codec.factor
        self.latents = torch.zeros((rows, codec.latent_channels, height, width), device=device, dtype=dtype)
        """[rows, C, h, w]: the last latents of each row."""
        self.images = torch.zeros((rows, 3, height * codec.factor, width * codec.factor), device=device, dtype=dtype)
        """[rows, 3, H, W] in [-1, 1]: the last pictures of each row."""
        self._counts = torch.arange(max(self.images.shape[2:]), device=device)

    def encode(self, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Encode [N, 3, H, W] in full and hold the latents [N, C, h, w] of rows [N] int64, which are returned."""
        encoded = self.codec.encode(images)
        self.latents.index_copy_(0, rows, encoded)
        return encoded

    def decode(self, latents: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Decode [N, C, h, w] in full and hold the pictures [N, 3, H, W] of rows [N] int64, which are returned."""
        decoded = self.codec.decode(latents)
        self.images.index_copy_(0, rows, decoded)
        return decoded

    def encode_window(
        self, images: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, shape: Shape
    ) -> torch.Tensor:
        """Encode a crop of each of images [N, 3, H, W] into the held latents of rows [N]; return them [N, C, h, w].

        positions: of the crops, [N, 6] int64 on the device. shape: of all of them. rows: all different.
        """
        factor = self._factor
        source = self._places(positions, (shape[0] * factor, shape[1] * factor), factor)
        encoded = self.codec.encode(_cut(images, *source))
        return self._paste(self.latents, encoded, rows, positions, shape, 1)

    def decode_window(
        self, latents: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor, shape: Shape
    ) -> torch.Tensor:
        """Decode a crop of each of latents [N, C, h, w] into the held pictures of rows [N]; return them [N, 3, H, W].

        positions, shape, rows: as in `encode_window`.
        """
        decoded = self.codec.decode(_cut(latents, *self._places(positions, shape, 1)))
        return self._paste(self.images, decoded, rows, positions, shape, self._factor)

    def _places(self, positions: torch.Tensor, shape: Shape, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Row numbers [N, height, 1] and column numbers [N, 1, width] of the crops' elements."""
        rows = positions[:, 0, None] * factor + self._counts[: shape[0]]
        columns = positions[:, 3, None] * factor + self._counts[: shape[1]]
        return rows[:, :, None], columns[:, None, :]

    def _paste(
        self,
        held: torch.Tensor,
        new: torch.Tensor,
        entries: torch.Tensor,
        positions: torch.Tensor,
        shape: Shape,
        factor: int,
    ) -> torch.Tensor:
        """Write what a crop has of complete halo. The rest is written as it was, so that shapes are fixed."""
        height, width = shape[0] * factor, shape[1] * factor
        rows, columns = self._places(positions, (height, width), factor)
        limits = positions[:, :, None] * factor
        along, across = self._counts[:height], self._counts[:width]
        keep_rows = (along >= limits[:, 1]) & (along < limits[:, 2])
        keep_columns = (across >= limits[:, 4]) & (across < limits[:, 5])
        keep = (keep_rows[:, :, None] & keep_columns[:, None, :])[..., None]
        places = (entries[:, None, None], rows, columns)
        pixels = held.permute(0, 2, 3, 1)
        pixels.index_put_(places, torch.where(keep, new.permute(0, 2, 3, 1), pixels[places]))
        return held.index_select(0, entries)


def _cut(pictures: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[N, C, H, W] -> [N, C, h, w] of each entry, in channels-last order."""
    entries = torch.arange(pictures.shape[0], device=pictures.device)[:, None, None]
    return pictures.permute(0, 2, 3, 1)[entries, rows, columns].permute(0, 3, 1, 2)
