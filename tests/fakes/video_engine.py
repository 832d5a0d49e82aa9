"""Video engines over tiny random weights, without files, for tests of the engine's contract.

The transformer has 2 layers and 2 heads of 16, a frame has 2x3 tokens; the codec is a narrow random one of the tiny
kind.
"""

from __future__ import annotations

import copy
import functools
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pipelines.core.types import Frame
from pipelines.video.codecs.codec import VideoCodec
from pipelines.video.codecs.tiny import TinyVideoCodec
from pipelines.video.engine import VideoEngine
from pipelines.video.loading.checkpoint_keys import KeyReport
from pipelines.video.model import MakeVideoRuntime, VideoModel, VideoNetworks
from pipelines.video.options import VideoOptions
from pipelines.video.presets import VideoPreset
from pipelines.video.runtime import plain_runtime
from pipelines.video.stream import VideoStream
from pipelines.video.wan.attention import choose_attention
from pipelines.video.wan.config import WanConfig
from pipelines.video.wan.transformer import CausalWanTransformer
from tests.fakes.image_model import frames as pictures
from tests.fakes.tiny_video_model import random_actions
from tests.fakes.video_codecs import tiny_autoencoder

WIDTH_PX, HEIGHT_PX = 48, 32
CHANNELS, TEXT_DIM, TEXT_TOKENS = 4, 12, 6


class HashText:
    """Encodes each text as its own random embedding [TEXT_TOKENS, TEXT_DIM]."""

    text_dim = TEXT_DIM

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.encoded: list[str] = []

    def encode(self, text: str) -> torch.Tensor:
        self.encoded.append(text)
        random = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        return torch.randn((TEXT_TOKENS, TEXT_DIM), generator=random).to(self._dtype)


@functools.cache
def random_transformer(dtype: torch.dtype) -> CausalWanTransformer:
    """Return random weights, with modulation tables scaled up so that timesteps matter. Shared: not to be modified."""
    config = WanConfig(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_DIM,
        text_len=TEXT_TOKENS,
        freq_dim=16,
        ffn_dim=48,
        num_layers=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        transformer = CausalWanTransformer(config)
    return transformer.to(dtype).eval().requires_grad_(False)


@functools.cache
def random_codec(dtype: torch.dtype) -> VideoCodec:
    """Return a narrow tiny autoencoder with random weights."""
    return TinyVideoCodec(tiny_autoencoder(encoder_padding="front").to(dtype).requires_grad_(False))


SMALL = VideoPreset(
    steps=(1000, 500),
    chunk_frames=2,
    window_frames=6,
    sink_frames=1,
    policy="sink",
    width=WIDTH_PX,
    height=HEIGHT_PX,
)
"""Two steps and a clean pass, chunks of 2 latents (5 frames, then 8), a window of 6 with a sink of 1."""
STEP_BATCH = replace(SMALL, steps=(1000, 750, 500), stream="step-batch", clean_pass=False, chunk_frames=1)
ROLLING = replace(SMALL, steps=(1000, 700, 400), stream="rolling", window_frames=9)
KINDS = {"chunk": SMALL, "step-batch": STEP_BATCH, "rolling": ROLLING}


def small_model(
    preset: VideoPreset = SMALL,
    dtype: torch.dtype = torch.float32,
    *,
    make_runtime: MakeVideoRuntime = plain_runtime,
    transformer: CausalWanTransformer | None = None,
    codec: VideoCodec | None = None,
    attention: str = "auto",
    **changes: Any,
) -> VideoModel:
    """Return a model with random weights. make_runtime: a backend's. changes: fields of VideoModel."""
    transformer = transformer or random_transformer(dtype)
    kernel = choose_attention(attention, device=transformer.device, dtype=dtype, head_dim=transformer.head_dim).backend
    networks = VideoNetworks(transformer=transformer, codec=codec or random_codec(dtype), attention=kernel)
    model = VideoModel(
        name="small",
        family="self-forcing",
        why="a test",
        transformer=networks.transformer,
        codec=networks.codec,
        runtime=make_runtime(networks),
        text=HashText(dtype),  # type: ignore[arg-type]
        preset=preset,
        dtype=dtype,
        device=torch.device("cpu"),
        licence="none",
        commercial=True,
        weights=KeyReport(mapped={}, missing=(), unexpected=(), mismatched={}),
    )
    return replace(model, **changes)


def small_model_on(
    device: torch.device,
    preset: VideoPreset = SMALL,
    *,
    acts: bool = False,
    make_runtime: MakeVideoRuntime = plain_runtime,
    attention: str = "auto",
) -> VideoModel:
    """Return a model with the same weights on another device. acts: with actions. make_runtime: a backend's."""
    weights = acting_transformer(torch.float32) if acts else random_transformer(torch.float32)
    text = HashText(torch.float32)
    encode = text.encode
    text.encode = lambda words: encode(words).to(device)  # type: ignore[method-assign]
    codec = TinyVideoCodec(copy.deepcopy(tiny_autoencoder(encoder_padding="front")).to(device).requires_grad_(False))
    return small_model(
        preset,
        make_runtime=make_runtime,
        attention=attention,
        transformer=copy.deepcopy(weights).to(device),
        codec=codec,
        text=text,
        device=device,
    )


@functools.cache
def acting_transformer(dtype: torch.dtype) -> CausalWanTransformer:
    """Return `random_transformer` with random actions. Shared: not to be modified."""
    transformer = copy.deepcopy(random_transformer(dtype))
    transformer.add_actions(random_actions(transformer.config.dim).to(dtype))
    return transformer


def acting_engine(preset: VideoPreset = SMALL, dtype: torch.dtype = torch.float32, **options: Any) -> VideoEngine:
    """Return an engine over a `small_model` that accepts actions. options: fields of VideoOptions."""
    model = small_model(preset, dtype, transformer=acting_transformer(dtype))
    return VideoEngine(model, VideoOptions(work_dtype=dtype, **{"max_streams": 2, **options}))


def small_engine(preset: VideoPreset = SMALL, dtype: torch.dtype = torch.float32, **options: Any) -> VideoEngine:
    """Return an engine over `small_model`. options: fields of VideoOptions."""
    return VideoEngine(small_model(preset, dtype), VideoOptions(work_dtype=dtype, **{"max_streams": 2, **options}))


def run_chunks(stream: VideoStream, engine: VideoEngine, chunks: int) -> list[np.ndarray]:
    """Generate `chunks` chunks from the prompt, one after another. Returns their pictures."""
    images: list[np.ndarray] = []
    for _ in range(chunks):
        while not stream.generate(stream.info.frames_per_chunk):
            engine.tick()
            images += [frame.image for frame in stream.pull()]
        while stream.has_work:
            engine.tick()
            images += [frame.image for frame in stream.pull()]
    return images


def video_frames(count: int, *, start: int = 0) -> list[Frame]:
    """Return distinct random frames of the engine's size."""
    return [replace(f, image=f.image[:HEIGHT_PX, :WIDTH_PX].copy()) for f in pictures(count, start=start, side_px=48)]
