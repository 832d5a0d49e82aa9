"""Streaming video autoencoders: state and its bytes, rows, constant memory, errors with a remedy."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pipelines.core.errors import InputError, ModelLayoutError
from pipelines.video.codecs.codec import VideoCodec, decode_clip, encode_clip, encode_image, frames_of, latents_of
from pipelines.video.codecs.pixels import to_bytes, to_pixels
from pipelines.video.codecs.tiny import TinyVideoAutoencoder, TinyVideoCodec
from pipelines.video.codecs.tiny_layers import TinyCodecConfig
from pipelines.video.codecs.wan import WanCodec, WanCodecOptions
from tests.fakes.video_codecs import tiny_autoencoder, wan_vae

KINDS: dict[str, Callable[[torch.dtype], VideoCodec]] = {
    "wan": lambda dtype: WanCodec(wan_vae(dtype)),
    "tiny": lambda dtype: TinyVideoCodec(tiny_autoencoder().to(dtype)),
}


@pytest.fixture(params=KINDS)
def codec(request: pytest.FixtureRequest) -> VideoCodec:
    return KINDS[request.param](torch.float32)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(9))


# --- frames and latents ----------------------------------------------------------------------------------------------


def test_frames_and_latents_count_as_in_wan() -> None:
    assert [frames_of(n, first=True) for n in (1, 3, 21)] == [1, 9, 81]
    assert [frames_of(n, first=False) for n in (1, 3)] == [4, 12]
    assert [latents_of(n, first=True) for n in (1, 5, 81)] == [1, 2, 21]
    assert [latents_of(n, first=False) for n in (4, 12)] == [1, 3]


@pytest.mark.parametrize(
    ("frames", "first", "remedy"),
    [(4, True, "Give 1 or 5"), (0, True, "Give 1 or 5"), (5, False, "Give 4 or 8"), (0, False, "Give 4 frames")],
)
def test_other_numbers_of_frames_are_refused(frames: int, first: bool, remedy: str) -> None:
    with pytest.raises(InputError, match=remedy):
        latents_of(frames, first=first)


# --- state -----------------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_tiny_decoder_are_one_frame_a_block() -> None:
    decoder = TinyVideoCodec(TinyVideoAutoencoder(TinyCodecConfig(decoder_channels=(16, 12, 8, 6)))).decoder(
        height=16, width=24, rows=3
    )
    assert decoder.memory.shapes == ((16, 2, 3),) * 3 + ((12, 4, 6),) * 3 + ((8, 8, 12),) * 3
    assert decoder.bytes == 3 * 4 * 3 * (16 * 6 + 12 * 24 + 8 * 96)


def test_the_bytes_of_a_wan_decoder_are_two_frames_a_convolution() -> None:
    decoder = WanCodec(wan_vae()).decoder(height=16, width=24, rows=2)
    shapes = decoder.memory.shapes
    assert len(shapes) == 32  # as many as Wan 2.1's decoder has causal convolutions over three frames
    assert all(shape[1] == 2 for shape in shapes)
    assert shapes[0] == (4, 2, 2, 3)
    assert shapes[-1] == (4, 2, 16, 24)
    assert decoder.bytes == 2 * 4 * sum(c * t * h * w for c, t, h, w in shapes)


def test_published_sizes_in_memory() -> None:
    """The figures of docs/video-codecs.md for 480×832, on the meta device."""
    with torch.device("meta"):
        wan = WanCodec(torch.nn.Module.to(AutoencoderKLWan(), torch.bfloat16))
        tiny = TinyVideoCodec(TinyVideoAutoencoder().half())
    assert wan.decoder(height=480, width=832).bytes == 1_888_573_440
    assert wan.encoder(height=480, width=832).bytes == 1_121_402_880
    assert tiny.decoder(height=480, width=832).bytes == 67_092_480
    assert tiny.encoder(height=480, width=832).bytes == 50_319_360


@pytest.mark.parametrize("chunks", [40, pytest.param(200, marks=pytest.mark.soak)])
def test_memory_is_flat(codec: VideoCodec, chunks: int) -> None:
    decoder, encoder = codec.decoder(height=8, width=8), codec.encoder(height=8, width=8)
    process = psutil.Process()
    latents, pixels = noise(1, 4, 1, 1, 1), torch.rand(1, 3, 4, 8, 8)
    decoder.decode(latents)
    encoder.encode(pixels[:, :, :1])
    held: list[tuple[object, ...]] = []
    resident: list[int] = []
    for chunk in range(chunks):
        decoder.decode(latents)
        encoder.encode(pixels)
        if chunk in (chunks // 4, chunks - 1):
            gc.collect()
            tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
            held.append((tensors, decoder.bytes, encoder.bytes, decoder.memory.addresses(), encoder.memory.addresses()))
            resident.append(process.memory_info().rss)
    assert held[0] == held[1]
    assert resident[1] - resident[0] < 8 * 2**20
    assert decoder.latents_done(0) == encoder.latents_done(0) == chunks + 1


def test_a_reset_row_begins_anew_and_the_other_goes_on(codec: VideoCodec) -> None:
    latents = noise(2, 4, 3, 1, 2)
    decoder = codec.decoder(height=8, width=16, rows=2)
    fresh = decoder.decode(latents[:, :, :1])
    second = decoder.decode(latents[:, :, 1:2])
    decoder.reset(0)
    assert [decoder.latents_done(row) for row in (0, 1)] == [0, 2]
    torch.testing.assert_close(decoder.decode(latents[:1, :, :1], [0]), fresh[:1])
    torch.testing.assert_close(decoder.decode(latents[:1, :, 1:2], [0]), second[:1])
    third = decoder.decode(latents[1:, :, 2:], [1])
    decoder.reset()
    whole = decoder.decode(latents)
    torch.testing.assert_close(whole[1:, :, 5:], third)


def test_a_snapshot_brings_any_row_back(codec: VideoCodec) -> None:
    latents, pixels = noise(2, 4, 3, 1, 2), torch.rand(2, 3, 9, 8, 16)
    decoder = codec.decoder(height=8, width=16, rows=2)
    encoder = codec.encoder(height=8, width=16, rows=2)
    decoder.decode(latents[:, :, :2])
    encoder.encode(pixels[:, :, :5])
    shown, coded = decoder.snapshot(0), encoder.snapshot(0, into=encoder.snapshot_buffers("cpu"))
    want, code = decoder.decode(latents[:1, :, 2:], [0]), encoder.encode(pixels[:1, :, 5:], [0])
    decoder.decode(latents[:, :, :2])  # moves both rows on; the snapshot stays
    decoder.restore(1, shown)
    encoder.restore(1, coded)
    assert decoder.latents_done(1) == encoder.latents_done(1) == 2
    torch.testing.assert_close(decoder.decode(latents[:1, :, 2:], [1]), want)
    torch.testing.assert_close(encoder.encode(pixels[:1, :, 5:], [1]), code)
    assert shown.bytes == decoder.bytes // 2


class Operations(TorchDispatchMode):
    """Records every operation with its input shapes and dtypes; fails on one that reads a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[object, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), "the host waits for a number"
        assert "nonzero" not in str(func)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.seen.append((str(func), tuple((tuple(t.shape), t.dtype) for t in tensors)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("subset", [False, True])
def test_run_is_a_static_program(codec: VideoCodec, subset: bool) -> None:
    """Every later chunk runs the same operations on the same memory and reads no value; the caller counts."""
    latents = noise(2, 4, 4, 1, 2)
    decoder, whole = codec.decoder(height=8, width=16, rows=2), codec.decoder(height=8, width=16, rows=2)
    rows = torch.tensor([1, 0]) if subset else None
    addresses, parts, programs = decoder.memory.addresses(), [], []
    for place in range(4):
        with Operations() as operations:
            parts.append(decoder.run(latents[:, :, place : place + 1], rows, first=not place))
        programs.append(operations.seen)
    assert programs[1] == programs[2] == programs[3] != programs[0]
    assert decoder.memory.addresses() == addresses
    torch.testing.assert_close(torch.cat(parts, 2), whole.decode(latents, [1, 0] if subset else None))
    assert decoder.latents_done(0) == 0
    decoder.advance(None, 4)
    assert decoder.latents_done(1) == whole.latents_done(1) == 4


def test_inference_mode_may_come_and_go(codec: VideoCodec) -> None:
    latents = noise(1, 4, 3, 1, 2)
    with torch.inference_mode():
        decoder = codec.decoder(height=8, width=16)
        parts = [decoder.decode(latents[:, :, :1])]
        kept = decoder.snapshot(0)
    parts.append(decoder.decode(latents[:, :, 1:2]))
    with torch.inference_mode():
        parts.append(decoder.decode(latents[:, :, 2:]))
    torch.testing.assert_close(torch.cat(parts, 2), decode_clip(codec, latents))
    decoder.restore(0, kept)
    torch.testing.assert_close(decoder.decode(latents[:, :, 1:2]), parts[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_and_gives_float32(kind: str, dtype: torch.dtype) -> None:
    latents, pixels = noise(1, 4, 3, 1, 2), torch.rand(1, 3, 9, 8, 16)
    exact, half = KINDS[kind](torch.float32), KINDS[kind](dtype)
    shown, coded = decode_clip(half, latents), encode_clip(half, pixels)
    assert shown.dtype == coded.dtype == torch.float32
    assert half.decoder(height=8, width=16).bytes * 2 == exact.decoder(height=8, width=16).bytes
    assert float((shown - decode_clip(exact, latents)).abs().max()) < 0.03
    assert float((coded - encode_clip(exact, pixels)).abs().max()) < 0.15
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1


# --- errors at the edge ----------------------------------------------------------------------------------------------

Call = Callable[[VideoCodec], Any]
REFUSED: dict[str, tuple[str, Call]] = {
    "a size that is no multiple of 8": ("Use 832×480", lambda c: c.decoder(height=483, width=830)),
    "an encoder of such a size": ("multiples of 8", lambda c: c.encoder(height=16, width=20)),
    "no rows": ("0 rows", lambda c: c.decoder(height=8, width=8, rows=0)),
    "the latents of an image": ("unsqueeze", lambda c: c.decoder(height=8, width=8).decode(torch.zeros(1, 4, 1, 1))),
    "an image": ("encode_image", lambda c: c.encoder(height=8, width=8).encode(torch.zeros(1, 3, 8, 8))),
    "an image as a clip": ("unsqueeze", lambda c: encode_clip(c, torch.zeros(1, 3, 8, 8))),
    "a video as an image": ("5 frames.*Pick one", lambda c: encode_image(c, torch.zeros(1, 3, 5, 8, 8))),
    "an empty clip": ("Give 1 or 5", lambda c: encode_clip(c, torch.zeros(1, 3, 0, 8, 8))),
    "no latents": ("n of at least 1", lambda c: c.decoder(height=8, width=8).decode(torch.zeros(1, 4, 0, 1, 1))),
    "16 channels": ("has 4", lambda c: c.decoder(height=8, width=8).decode(torch.zeros(1, 16, 1, 1, 1))),
    "swapped axes": ("swap the axes", lambda c: c.decoder(height=8, width=8).decode(torch.zeros(1, 3, 4, 1, 1))),
    "latents of another size": (
        "decoder of that size",
        lambda c: c.decoder(height=8, width=8).decode(torch.zeros(1, 4, 1, 2, 1)),
    ),
    "frames of another size": ("Resize", lambda c: c.encoder(height=8, width=8).encode(torch.zeros(1, 3, 1, 8, 16))),
    "four colours": ("three colour", lambda c: c.encoder(height=8, width=8).encode(torch.zeros(1, 4, 1, 8, 8))),
    "bytes": (
        "to_pixels",
        lambda c: c.encoder(height=8, width=8).encode(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8)),
    ),
    "two entries for one row": (
        "2 batch entries",
        lambda c: c.decoder(height=8, width=8).decode(torch.zeros(2, 4, 1, 1, 1)),
    ),
    "three frames first": ("1 \\+ 4k", lambda c: c.encoder(height=8, width=8).encode(torch.zeros(1, 3, 3, 8, 8))),
    "a row twice": (
        "distinct",
        lambda c: c.decoder(height=8, width=8, rows=2).decode(torch.zeros(2, 4, 1, 1, 1), [1, 1]),
    ),
    "a row that is not there": (
        "0..1",
        lambda c: c.decoder(height=8, width=8, rows=2).decode(torch.zeros(1, 4, 1, 1, 1), [2]),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_with_a_remedy(name: str, codec: VideoCodec) -> None:
    message, call = REFUSED[name]
    with pytest.raises(InputError, match=message):
        call(codec)


def test_a_refused_call_changes_nothing(codec: VideoCodec) -> None:
    latents, encoder, decoder = noise(1, 4, 2, 1, 1), codec.encoder(height=8, width=8), codec.decoder(height=8, width=8)
    decoder.decode(latents[:, :, :1])
    kept = decoder.snapshot(0)
    with pytest.raises(InputError):
        decoder.decode(torch.zeros(1, 5, 1, 1, 1))
    encoder.encode(torch.rand(1, 3, 1, 8, 8))
    with pytest.raises(InputError, match="Give 4 or 8"):
        encoder.encode(torch.rand(1, 3, 5, 8, 8))
    assert decoder.latents_done(0) == encoder.latents_done(0) == 1
    now = decoder.snapshot(0)
    assert all(torch.equal(a, b) for a, b in zip(kept.features, now.features, strict=True))


def test_first_and_later_rows_are_not_mixed(codec: VideoCodec) -> None:
    decoder = codec.decoder(height=8, width=8, rows=2)
    decoder.decode(noise(1, 4, 1, 1, 1), [0])
    with pytest.raises(InputError, match=r"others are not.*one call for the rows whose latents_done is 0"):
        decoder.decode(noise(2, 4, 1, 1, 1))


def test_a_snapshot_of_another_size_is_refused(codec: VideoCodec) -> None:
    snapshot = codec.decoder(height=8, width=16).snapshot(0)
    with pytest.raises(InputError, match="another size"):
        codec.decoder(height=8, width=8).restore(0, snapshot)


def test_wan_2_2_and_crooked_configurations_are_refused() -> None:
    with torch.device("meta"), pytest.raises(ModelLayoutError, match=r"Wan 2\.2"):
        WanCodec(AutoencoderKLWan(base_dim=4, z_dim=4, is_residual=True, latents_mean=[0.0] * 4, latents_std=[1.0] * 4))
    with torch.device("meta"), pytest.raises(ModelLayoutError, match="16 means"):
        WanCodec(AutoencoderKLWan(base_dim=4, z_dim=4))
    with pytest.raises(InputError, match="latents_per_pass"):
        WanCodecOptions(latents_per_pass=0)


@pytest.mark.parametrize(
    "options",
    [{"decoder_channels": (8, 8, 8)}, {"encoder_channels": (8, 8, 0, 8)}, {"blocks_per_stage": 0}, {"patch_size": 0}],
    ids=str,
)
def test_impossible_tiny_configurations_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        TinyCodecConfig(**options)
    with pytest.raises(InputError, match="front"):
        TinyCodecConfig(encoder_padding="middle")  # type: ignore[arg-type]


# --- frames and pixels -----------------------------------------------------------------------------------------------


def test_frames_become_pixels_and_come_back() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 8, 16, 3), dtype=np.uint8)
    pixels = to_pixels(frames)
    assert pixels.shape == (1, 3, 5, 8, 16)
    assert float(pixels[0, 2, 4, 7, 1]) == pytest.approx(frames[4, 7, 1, 2] / 255)
    assert np.array_equal(to_bytes(pixels)[0].numpy(), frames)
    rows = to_bytes(torch.cat((pixels, torch.full_like(pixels, 1.5), torch.full_like(pixels, float("nan")))))
    assert rows.shape == (3, 5, 8, 16, 3)
    assert rows.is_contiguous()
    assert rows[1].min() == 255
    assert rows[2].max() == 0


def test_what_are_no_frames_is_refused() -> None:
    with pytest.raises(InputError, match="image"):
        to_pixels(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="float64"):
        to_pixels(np.zeros((1, 8, 8, 3)))
    with pytest.raises(InputError, match="unsqueeze"):
        to_bytes(torch.zeros(1, 3, 8, 8))
