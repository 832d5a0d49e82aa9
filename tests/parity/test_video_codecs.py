"""Streamed video autoencoders against whole clips: diffusers' own AutoencoderKLWan, the tiny kind against itself all at
once and against a plain frame-by-frame reading of its published weights. Then every rule broken once, which must show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, WanUpsample

from pipelines.video.codecs import tiny as tiny_codec
from pipelines.video.codecs import tiny_layers as tiny_codec_layers
from pipelines.video.codecs import wan_layers as wan_codec_layers
from pipelines.video.codecs.codec import VideoCodec, decode_clip, encode_clip, encode_image, frames_of
from pipelines.video.codecs.memory import Pass
from pipelines.video.codecs.tiny import TinyVideoCodec
from pipelines.video.codecs.wan import WanCodec, WanCodecOptions
from tests.fakes.video_codecs import PlainTiny, stock_decode, stock_encode, tiny_autoencoder, wan_vae
from tests.parity.conftest import Report

TOLERANCE = 2e-5  # float32, tiny random weights; convolutions over more frames at once may sum in another order
BROKEN = 1e-3  # what a broken rule makes at least
HEIGHT, WIDTH = 8, 16
CHUNKINGS = [(1, 1, 1, 1, 1), (1, 3, 3), (3, 3), (2, 1, 4), (5,)]
PASSES = [*((chunks, 8) for chunks in CHUNKINGS), ((1, 3, 3), 1), ((1, 3, 3), 2), ((5,), 3)]  # and latents per pass


def random_latents(count: int, *, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 4, count, HEIGHT // 8, WIDTH // 8, generator=generator, dtype=dtype)


def random_pixels(latents: int, *, batch: int = 2, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.rand(batch, 3, frames_of(latents, first=True), HEIGHT, WIDTH, generator=generator, dtype=dtype)


def stream_decode(codec: VideoCodec, latents: torch.Tensor, chunks: Sequence[int]) -> torch.Tensor:
    decoder = codec.decoder(height=HEIGHT, width=WIDTH, rows=latents.shape[0])
    return torch.cat([decoder.decode(chunk) for chunk in latents.split(list(chunks), 2)], 2)


def stream_encode(codec: VideoCodec, pixels: torch.Tensor, chunks: Sequence[int]) -> torch.Tensor:
    encoder = codec.encoder(height=HEIGHT, width=WIDTH, rows=pixels.shape[0])
    frames = [frames_of(count, first=not place) for place, count in enumerate(chunks)]
    return torch.cat([encoder.encode(chunk) for chunk in pixels.split(frames, 2)], 2)


def apart(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest difference; infinite if the shapes differ."""
    return float((got - want).abs().max()) if got.shape == want.shape else float("inf")


def test_convolutions_that_see_one_frame_run_as_pictures_and_remember_nothing(report: Report) -> None:
    vae, whole = wan_vae(), wan_vae()
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d) and min(module.kernel_size) > 1:
                module.weight[:, :, :-1] = 0
    latents, pixels = random_latents(4), random_pixels(4)
    codec = WanCodec(vae)
    decoded = stream_decode(codec, latents, (1, 3)) - stock_decode(vae, latents)
    encoded = stream_encode(codec, pixels, (1, 3)) - stock_encode(vae, pixels)
    assert report("Wan whose spatial convolutions see one frame", [decoded, encoded]) <= TOLERANCE
    size = {"height": HEIGHT, "width": WIDTH, "rows": 1}
    assert codec.decoder(**size).bytes < 0.1 * WanCodec(whole).decoder(**size).bytes


@pytest.mark.parametrize(("chunks", "per_pass"), PASSES, ids=str)
def test_streamed_wan_decode_equals_the_stock_whole_clip(
    chunks: tuple[int, ...], per_pass: int, report: Report
) -> None:
    vae, latents = wan_vae(), random_latents(sum(chunks))
    want = stock_decode(vae, latents)
    codec = WanCodec(vae, WanCodecOptions(latents_per_pass=per_pass))
    got = stream_decode(codec, latents, chunks)
    assert got.shape == want.shape == (2, 3, 4 * sum(chunks) - 3, HEIGHT, WIDTH)
    assert report(f"Wan decode, chunks {chunks}, {per_pass} a pass", [got - want]) <= TOLERANCE
    assert want.std() > 0.05  # pixels that are not all clamped


@pytest.mark.parametrize(("chunks", "per_pass"), PASSES, ids=str)
def test_streamed_wan_encode_equals_the_stock_whole_clip(
    chunks: tuple[int, ...], per_pass: int, report: Report
) -> None:
    vae, pixels = wan_vae(), random_pixels(sum(chunks))
    want = stock_encode(vae, pixels)
    codec = WanCodec(vae, WanCodecOptions(latents_per_pass=per_pass))
    got = stream_encode(codec, pixels, chunks)
    assert got.shape == want.shape == (2, 4, sum(chunks), HEIGHT // 8, WIDTH // 8)
    assert report(f"Wan encode, chunks {chunks}, {per_pass} a pass", [got - want]) <= TOLERANCE


@pytest.mark.parametrize("channels_last", [False, True])
def test_wan_in_float64_leaves_no_room_for_a_rule(
    channels_last: bool, monkeypatch: pytest.MonkeyPatch, report: Report
) -> None:
    monkeypatch.setattr(WanUpsample, "forward", torch.nn.Upsample.forward)  # the stock one rounds copies to float32
    vae = wan_vae(torch.float64)
    codec = WanCodec(vae, WanCodecOptions(channels_last=channels_last))
    latents, pixels = random_latents(5, dtype=torch.float64), random_pixels(5, dtype=torch.float64)
    decoded = stream_decode(codec, latents, (1, 3, 1)) - stock_decode(vae, latents)
    encoded = stream_encode(codec, pixels, (1, 3, 1)) - stock_encode(vae, pixels)
    assert report(f"Wan in float64, channels last {channels_last}", [decoded, encoded]) <= 1e-13


def test_whole_clip_helpers_equal_the_stock_ones(report: Report) -> None:
    vae, latents, pixels = wan_vae(), random_latents(3), random_pixels(3)
    codec = WanCodec(vae)
    differences = [decode_clip(codec, latents) - stock_decode(vae, latents)]
    differences.append(encode_clip(codec, pixels) - stock_encode(vae, pixels))
    differences.append(encode_image(codec, pixels[:, :, 0]) - stock_encode(vae, pixels[:, :, :1]))
    assert report("Wan, whole clips and an image by the helpers", differences) <= TOLERANCE


@pytest.mark.parametrize("kind", ["wan", "tiny"])
def test_rows_that_began_at_different_times_do_not_touch_each_other(kind: str, report: Report) -> None:
    codec: VideoCodec = (
        WanCodec(wan_vae()) if kind == "wan" else TinyVideoCodec(tiny_autoencoder(encoder_padding="front"))
    )
    latents, pixels = random_latents(5, batch=3), random_pixels(5, batch=3)
    decoder = codec.decoder(height=HEIGHT, width=WIDTH, rows=3)
    encoder = codec.encoder(height=HEIGHT, width=WIDTH, rows=3)
    shown: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    coded: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    for rows in ([1], [2, 0], [0, 1], [1, 2], [0, 1, 2], [2, 1, 0]):  # each row is advanced by one latent
        starts = [decoder.latents_done(row) for row in rows]
        assert starts == [encoder.latents_done(row) for row in rows]
        if 0 in starts and any(starts):
            continue
        some = torch.stack([latents[row, :, start : start + 1] for row, start in zip(rows, starts, strict=True)])
        spans = [(4 * start - 3, 4 * start + 1) if start else (0, 1) for start in starts]
        video = torch.stack([pixels[row, :, begin:end] for row, (begin, end) in zip(rows, spans, strict=True)])
        for entry, (seen, code) in enumerate(zip(decoder.decode(some, rows), encoder.encode(video, rows), strict=True)):
            shown[rows[entry]].append(seen)
            coded[rows[entry]].append(code)
    differences = []
    for row in range(3):
        count = decoder.latents_done(row)
        assert count >= 3
        differences.append(torch.cat(shown[row], 1) - decode_clip(codec, latents[row : row + 1, :, :count])[0])
        whole = encode_clip(codec, pixels[row : row + 1, :, : frames_of(count, first=True)])
        differences.append(torch.cat(coded[row], 1) - whole[0])
    assert report(f"{kind}: rows in changing company against each alone", differences) <= TOLERANCE


@pytest.mark.parametrize("chunks", CHUNKINGS, ids=str)
@pytest.mark.parametrize("options", [{}, {"patch_size": 2}, {"blocks_per_stage": 1}], ids=str)
def test_streamed_tiny_equals_all_at_once(chunks: tuple[int, ...], options: dict[str, int], report: Report) -> None:
    module = tiny_autoencoder(encoder_padding="front", **options)
    codec, count = TinyVideoCodec(module), sum(chunks)
    factor = 8 * module.config.patch_size
    latents = torch.randn(2, 4, count, 2, 3, generator=torch.Generator().manual_seed(3))
    pixels = torch.rand(2, 3, 4 * count - 3, 2 * factor, 3 * factor, generator=torch.Generator().manual_seed(4))
    decoder = codec.decoder(height=2 * factor, width=3 * factor, rows=2)
    encoder = codec.encoder(height=2 * factor, width=3 * factor, rows=2)
    with torch.no_grad():
        shown, coded = module.decode(latents).clamp(0, 1), module.encode(pixels)
    frames = [frames_of(n, first=not place) for place, n in enumerate(chunks)]
    decoded = torch.cat([decoder.decode(chunk) for chunk in latents.split(list(chunks), 2)], 2) - shown
    encoded = torch.cat([encoder.encode(chunk) for chunk in pixels.split(frames, 2)], 2) - coded
    assert report(f"tiny {options or ''}, chunks {chunks}", [decoded, encoded]) <= TOLERANCE
    assert shown.std() > 0.05


def plain_tiny_differences(codec: TinyVideoCodec) -> list[torch.Tensor]:
    """A streamed clip, and whole clips, against the plain reading. The live encoder's first frame stands four times."""
    state, latents, pixels = codec.module.state_dict(), random_latents(4), random_pixels(4)
    with torch.no_grad():
        shown = PlainTiny(state).decode(latents)
        ahead = PlainTiny(state).encode(torch.cat((pixels, pixels[:, :, -1:].repeat(1, 1, 3, 1, 1)), 2))
        live = PlainTiny(state).encode(torch.cat((pixels[:, :, :1].repeat(1, 1, 3, 1, 1), pixels), 2))
        pairs = [
            (stream_decode(codec, latents, (1, 3)), shown.clamp(0, 1)),
            (codec.module.decode(latents), shown),
            (stream_encode(codec, pixels, (2, 2)), live),
            (encode_clip(codec, pixels), ahead),
            (codec.module.encode(pixels), ahead),
        ]
    assert all(got.shape == want.shape for got, want in pairs)
    return [got - want for got, want in pairs]


def test_tiny_equals_a_plain_reading_of_its_published_weights(report: Report) -> None:
    assert (
        report(
            "tiny, against frame by frame in published order",
            plain_tiny_differences(TinyVideoCodec(tiny_autoencoder())),
        )
        <= TOLERANCE
    )


def test_a_tiny_encoder_that_looks_ahead_equals_the_whole_clip_in_pieces(report: Report) -> None:
    """With the following frames available, the first call has 4n: no delay, equal to the published whole-clip use."""
    codec, pixels = TinyVideoCodec(tiny_autoencoder()), random_pixels(4)
    encoder = codec.encoder(height=HEIGHT, width=WIDTH, rows=2)
    parts = [encoder.encode(pixels[:, :, :8]), encoder.encode(pixels[:, :, 8:12])]
    last = torch.cat((pixels[:, :, 12:], pixels[:, :, -1:].repeat(1, 1, 3, 1, 1)), 2)
    with torch.no_grad():
        want = codec.module.encode(pixels)
    assert codec.encoder_delay_frames == 3
    assert (
        report("tiny encode, looking ahead, in pieces", [torch.cat([*parts, encoder.encode(last)], 2) - want])
        <= TOLERANCE
    )


# --- each rule broken once -------------------------------------------------------------------------------------------


def wan_decode_error() -> float:
    vae, latents = wan_vae(), random_latents(4)
    return apart(stream_decode(WanCodec(vae), latents, (1, 2, 1)), stock_decode(vae, latents))


def wan_encode_error() -> float:
    vae, pixels = wan_vae(), random_pixels(4)
    return apart(stream_encode(WanCodec(vae), pixels, (1, 2, 1)), stock_encode(vae, pixels))


def tiny_error() -> float:
    return max(
        float(difference.abs().max()) for difference in plain_tiny_differences(TinyVideoCodec(tiny_autoencoder()))
    )


def double_without_bypass(x: torch.Tensor, time: wan_codec_layers.Layer, run: Pass) -> torch.Tensor:
    """Every latent goes through the time convolution; the surplus first frame is dropped, so that the shapes fit."""
    channels = x.shape[1]
    y = time(x, run)
    y = torch.stack((y[:, :channels], y[:, channels:]), 3).flatten(2, 3)
    return y[:, :, 1:] if run.first else y


def double_with_history(x: torch.Tensor, time: wan_codec_layers.Layer, run: Pass) -> torch.Tensor:
    """The first latent bypasses the convolution, but is kept as the second one's history."""
    y = double_without_bypass(x, time, run)
    return torch.cat((x[:, :, :1], y[:, :, 1:]), 2) if run.first else y


def halve_without_bypass(self: object, x: torch.Tensor, slot: int, run: Pass) -> torch.Tensor:
    """The first frame is convolved with zeros before it."""
    time = self._module.time_conv  # type: ignore[attr-defined]
    before = run.memory.read(slot, run.rows)
    frames = torch.cat((before, before, x), 2) if run.first else torch.cat((before, x), 2)
    run.memory.write(slot, run.rows, frames[:, :, -1:])
    return torch.nn.functional.conv3d(frames, time.weight, time.bias, stride=time.stride)


def remember_output(layer: tiny_codec_layers.MemoryBlock, x: torch.Tensor, run: Pass, slot: int) -> torch.Tensor:
    """A block remembers its output instead of its input."""
    before = run.memory.read(slot, run.rows)
    y: torch.Tensor = layer(x, before)
    run.memory.write(slot, run.rows, y[-before.shape[0] :])
    return y


def fill_at_the_other_end(pixels: torch.Tensor, *, at: str) -> torch.Tensor:
    copies = (pixels[:, :, :1] if at == "end" else pixels[:, :, -1:]).repeat(1, 1, 3, 1, 1)
    return torch.cat((copies, pixels) if at == "end" else (pixels, copies), 2)


BREAKS: dict[str, tuple[Callable[[], float], Iterable[tuple[object, str, object]]]] = {
    "Wan: the first latent goes through the time convolution": (
        wan_decode_error,
        [(wan_codec_layers.Upsample, "_double_time", staticmethod(double_without_bypass))],
    ),
    "Wan: the second latent sees the first in its time convolution": (
        wan_decode_error,
        [(wan_codec_layers.Upsample, "_double_time", staticmethod(double_with_history))],
    ),
    "Wan: the first frame goes through the encoder's time convolution": (
        wan_encode_error,
        [(wan_codec_layers.Downsample, "_halve_time", halve_without_bypass)],
    ),
    "Wan: latents are not scaled": (wan_decode_error, [(WanCodec, "denormalise", lambda self, latents: latents)]),
    "Wan: encoded latents are not scaled": (wan_encode_error, [(WanCodec, "normalise", lambda self, raw: raw)]),
    "tiny: the last three frames are dropped, not the first": (
        tiny_error,
        [
            (
                tiny_codec.TinyVideoAutoencoder,
                "decode",
                lambda self, latents: self.decode_raw(latents)[:, :, :-3],
            )
        ],
    ),
    "tiny: latents are not pressed into (-3, 3)": (
        tiny_error,
        [(tiny_codec_layers.SoftClamp, "forward", lambda self, x: x)],
    ),
    "tiny: a block remembers its output": (tiny_error, [(tiny_codec_layers, "_remember", remember_output)]),
    "tiny: a clip is filled at the other end": (tiny_error, [(tiny_codec, "fill_groups", fill_at_the_other_end)]),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_broken_rule_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, patches = BREAKS[name]
    assert error() <= TOLERANCE
    for owner, attribute, replacement in patches:
        monkeypatch.setattr(owner, attribute, replacement)
    assert error() >= BROKEN


@pytest.mark.parametrize("kind", ["wan", "tiny"])
def test_state_that_is_lost_shows(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each state tensor matters: with any one of them zeroed between two chunks, the second differs."""
    codec: VideoCodec = WanCodec(wan_vae()) if kind == "wan" else TinyVideoCodec(tiny_autoencoder())
    latents = random_latents(3, batch=1)
    decoder = codec.decoder(height=HEIGHT, width=WIDTH)
    decoder.decode(latents[:, :, :2])
    kept = decoder.snapshot(0)
    want = decoder.decode(latents[:, :, 2:])
    for number, feature in enumerate(kept.features):
        decoder.restore(0, kept)
        assert torch.equal(decoder.decode(latents[:, :, 2:]), want)
        decoder.restore(0, kept)
        features = [torch.zeros_like(f) if place == number else f for place, f in enumerate(kept.features)]
        decoder.restore(0, type(kept)(features=tuple(features), latents_done=kept.latents_done))
        assert feature.abs().max() > 0
        assert apart(decoder.decode(latents[:, :, 2:]), want) > TOLERANCE, number
