"""Windows of a clip in time against its whole decoding, and against a restored state, which needs no margin."""

from __future__ import annotations

import pytest
import torch

from pipelines.video.codecs.codec import VideoCodec, decode_clip
from pipelines.video.codecs.tiny import TinyVideoCodec
from pipelines.video.codecs.wan import WanCodec
from pipelines.video.codecs.window import decode_window, temporal_margin
from tests.fakes.video_codecs import tiny_autoencoder, wan_vae

TINY_MARGIN = 8  # three blocks at one frame a latent, three at one, three at two, each of which looks one frame back


@pytest.fixture(scope="module")
def tiny() -> VideoCodec:
    return TinyVideoCodec(tiny_autoencoder())


def test_the_tiny_codec_looks_eight_latents_back(tiny: VideoCodec) -> None:
    assert temporal_margin(tiny, latents=12) == TINY_MARGIN
    assert temporal_margin(tiny, latents=9) is None


@pytest.mark.parametrize(("first", "stop"), [(0, 2), (1, 3), (9, 10), (10, 14)])
def test_a_window_with_its_margin_is_the_whole_decoding(tiny: VideoCodec, first: int, stop: int) -> None:
    latents = torch.randn(2, 4, 14, 3, 4, generator=torch.Generator().manual_seed(0))
    whole = decode_clip(tiny, latents)
    part = whole[:, :, max(0, 4 * first - 3) : 4 * stop - 3]
    assert torch.equal(decode_window(tiny, latents, first, stop, TINY_MARGIN), part)
    if first > TINY_MARGIN:
        assert not torch.equal(decode_window(tiny, latents, first, stop, TINY_MARGIN - 2), part)


def test_the_published_codec_looks_too_far_back_for_windows() -> None:
    assert temporal_margin(WanCodec(wan_vae()), latents=24, inputs=1) is None


@pytest.mark.parametrize("kind", ["tiny", "wan"])
def test_a_restored_state_needs_no_margin(kind: str, tiny: VideoCodec) -> None:
    """Rendering a chunk again, or rewinding to it, costs the chunk alone: windows in time have nothing to add."""
    codec = tiny if kind == "tiny" else WanCodec(wan_vae())
    latents = torch.randn(1, 4, 8, 2, 2, generator=torch.Generator().manual_seed(1))
    stream = codec.decoder(height=16, width=16)
    stream.decode(latents[:, :, :5])
    kept = stream.snapshot(0)
    first = stream.decode(latents[:, :, 5:])
    stream.restore(0, kept)
    assert torch.equal(stream.decode(latents[:, :, 5:]), first)
    torch.testing.assert_close(first, decode_clip(codec, latents)[:, :, 17:], rtol=0, atol=1e-5)
