"""Windows of a codec equal the full call: bit for bit with the exact halo, at every place of the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

from cache.features.receptive import affected
from pipelines.files import hub
from pipelines.image.codec_tiles import Crop, CropTable, Span, TiledCodec, codec_fields, positions
from pipelines.image.loading.networks import TinyImageCodec, channels_last

SIZE = (44, 52)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def codec() -> TinyImageCodec:
    vae = channels_last(AutoencoderTiny.from_pretrained(hub.BUNDLED_FOLDER / "mini-image" / "vae"))
    return TinyImageCodec(vae, dtype=torch.float32, device=CPU)


def test_spans_keep_their_halo_and_the_ends_need_none() -> None:
    around = {"length": 40, "side": 20, "halo": 5}
    assert Span.around(10, 14, **around) == Span(5, (5, 15))
    assert Span.around(0, 4, **around) == Span(0, (0, 15))
    assert Span.around(36, 40, **around) == Span(20, (5, 20))
    assert Span.around(3, 18, **around) is None
    assert Span.around(0, 15, **around) == Span(0, (0, 15))
    assert Span.around(0, 40, length=40, side=40, halo=5) == Span(0, (0, 40))


@pytest.mark.parametrize("first", range(0, 30, 3))
def test_a_crop_keeps_the_window(first: int) -> None:
    table = CropTable.of((30, 30), 4, shares=(0.3, 0.5, 0.8))
    assert [h * w for h, w in table.shapes] == sorted(h * w for h, w in table.shapes)
    stop = min(30, first + 3)
    crop = table.choose((first, 0), (stop, 2))
    assert crop is not None
    assert crop.rows.start + crop.rows.keep[0] <= first
    assert stop <= crop.rows.start + crop.rows.keep[1]
    assert crop.shape in table.shapes
    assert table.choose((0, 0), (30, 30)) is None


def test_windows_of_two_streams_equal_full_calls(codec: TinyImageCodec) -> None:
    """Only what can have changed is computed again; what is held afterwards is what a full call returns."""
    fields = codec_fields(codec.autoencoder)
    tiles = TiledCodec(codec, size=SIZE, rows=3, device=CPU)
    generator = torch.Generator().manual_seed(3)
    old = torch.rand(2, 3, SIZE[0] * 4, SIZE[1] * 4, generator=generator) * 2 - 1
    rows = torch.tensor([2, 0])
    tiles.encode(old, rows)
    new = old.clone()
    changed = np.zeros(old.shape[2:], dtype=bool)
    changed[3:9, 20:25] = True
    new[:, :, 3:9, 20:25] = torch.rand(2, 3, 6, 5, generator=generator)
    encoded = affected(changed, fields.encoder)
    crop = chosen(encoded, fields.encoder.margin_cells)
    latents = tiles.encode_window(new, rows, positions([crop, crop]), crop.shape)
    assert torch.equal(latents, codec.encode(new))
    assert torch.equal(tiles.latents[rows], latents)
    assert not tiles.latents[1].any()
    assert np.array_equal((latents != codec.encode(old)).any(1).any(0).numpy() & ~encoded, np.zeros(SIZE, dtype=bool))


@pytest.mark.parametrize("at", [(0, 0), (20, 25), (43, 51), (43, 0)])
def test_a_decoded_window_equals_the_full_picture(codec: TinyImageCodec, at: tuple[int, int]) -> None:
    field = codec_fields(codec.autoencoder).decoder
    tiles = TiledCodec(codec, size=SIZE, rows=2, device=CPU)
    old = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(4))
    row = torch.tensor([1])
    tiles.decode(old, row)
    new, changed = old.clone(), np.zeros(SIZE, dtype=bool)
    new[:, :, at[0], at[1]] += 2
    changed[at] = True
    pixels = affected(changed, field)
    full = codec.decode(new)
    assert not ((full != codec.decode(old)).any(1)[0].numpy() & ~pixels).any()
    covered = pixels.reshape(SIZE[0], 4, SIZE[1], 4).any(axis=(1, 3))
    crop = chosen(covered, field.margin_cells)
    assert torch.equal(tiles.decode_window(new, row, positions([crop]), crop.shape), full)


def test_too_small_a_halo_shows(codec: TinyImageCodec) -> None:
    """The test above would notice: with half of the halo, what is kept differs."""
    tiles = TiledCodec(codec, size=SIZE, rows=1, device=CPU)
    latents, row = torch.randn(1, 4, *SIZE, generator=torch.Generator().manual_seed(5)), torch.tensor([0])
    tiles.decode(latents, row)
    crop = CropTable(size=SIZE, halo=2, shapes=((16, 16),)).choose((20, 20), (24, 24))
    assert crop is not None
    assert not torch.equal(tiles.decode_window(latents, row, positions([crop]), crop.shape), codec.decode(latents))


def chosen(cells: np.ndarray, halo: int) -> Crop:
    rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    sides = tuple((height, width) for height in (36, 40, 44) for width in (40, 48, 52))
    crop = CropTable(size=SIZE, halo=halo, shapes=sides).choose(
        (int(rows[0]), int(columns[0])), (int(rows[-1]) + 1, int(columns[-1]) + 1)
    )
    assert crop is not None
    return crop
