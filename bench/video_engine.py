"""Owns the causal video engine under measurement: a model with random weights, a stream that never lacks requests.

Everything that a live session does but its transport: controls, noise drawn on the CPU, the tick log, frames as arrays.
"""

from __future__ import annotations

import statistics
import time
import zlib
from dataclasses import dataclass

import torch

from bench.video_shapes import VideoShape
from pipelines.controls import Control
from pipelines.types import Frame
from pipelines.video.checkpoint_keys import KeyReport
from pipelines.video.codec import VideoCodec
from pipelines.video.engine import VideoEngine
from pipelines.video.model import VideoModel
from pipelines.video.options import VideoOptions
from pipelines.video.presets import VideoPreset
from pipelines.video.stream import VideoStream
from pipelines.video.transformer import CausalWanTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """window_frames counts the chunk; both in latent frames. chunks: timed."""

    window_frames: int
    chunk_frames: int
    chunks: int
    backend: str


class RandomText:
    """Every text has its own random embeddings [text_len, text_dim]."""

    def __init__(self, shape: VideoShape, device: torch.device, dtype: torch.dtype) -> None:
        self._shape, self._device, self._dtype = shape.transformer, device, dtype

    @property
    def text_dim(self) -> int:
        """Width of an embedding."""
        return self._shape.text_dim

    def encode(self, text: str) -> torch.Tensor:
        """The same for the same text."""
        random = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        size = (self._shape.text_len, self._shape.text_dim)
        return torch.randn(size, generator=random).to(self._device, self._dtype)


def random_model(
    shape: VideoShape, transformer: CausalWanTransformer, codec: VideoCodec, settings: EngineSettings
) -> VideoModel:
    """The seam between loading and engine, filled with random parts."""
    preset = VideoPreset(
        window_frames=settings.window_frames,
        chunk_frames=settings.chunk_frames,
        width=shape.width_px,
        height=shape.height_px,
    )
    return VideoModel(
        name="random weights",
        family="self-forcing",
        why="for measurements",
        transformer=transformer,
        codec=codec,
        text=RandomText(shape, transformer.device, transformer.dtype),
        preset=preset,
        dtype=transformer.dtype,
        device=transformer.device,
        licence="none: random weights",
        commercial=True,
        weights=KeyReport(mapped={}, mismatched={}),
    )


def measure_engine(model: VideoModel, settings: EngineSettings) -> dict[str, object]:
    """Frames a second in the steady state; milliseconds to the first frame, and from a change of prompt to a frame."""
    options = VideoOptions(max_streams=1, backend=settings.backend)
    engine = VideoEngine(model, options)
    filling = -(-settings.window_frames // settings.chunk_frames)
    with engine.open(Control.of({"prompt": "a cat"})) as stream:
        _frames(engine, stream, 4 * settings.chunk_frames * (filling + 3))
        wanted = 4 * settings.chunk_frames * settings.chunks
        start, first_tick = time.perf_counter(), engine.core.next_tick
        made = len(_frames(engine, stream, wanted))
        fps, last_tick = made / (time.perf_counter() - start), engine.core.next_tick
        stream.flush()
        change_ms = [_change_ms(engine, stream, i) for i in range(4)]
    first_ms = []
    for _ in range(3):
        start = time.perf_counter()
        with engine.open(Control.of({"prompt": "a cat"})) as stream:
            _one_chunk(engine, stream)
            first_ms.append(1e3 * (time.perf_counter() - start))
    timings = [t for t in engine.log.timings() if first_tick <= t.tick < last_tick]
    figures = {
        "what": "engine",
        "backend": settings.backend,
        "window_latents": settings.window_frames,
        "chunk_latents": settings.chunk_frames,
        "end_to_end_fps": round(fps, 2),
        "pass_ms": round(statistics.median(t.denoise_ms for t in timings), 2),
        "control_to_frame_ms_at_best": round(statistics.median(change_ms[1:]), 1),
        "first_frame_ms": round(first_ms[-1], 1),
    }
    engine.close()
    return figures


def _frames(engine: VideoEngine, stream: VideoStream, count: int) -> list[Frame]:
    """At least so many frames; the stream is kept full."""
    frames: list[Frame] = []
    while len(frames) < count:
        while stream.generate(stream.info.frames_per_chunk):
            pass
        engine.tick()
        frames += stream.pull()
    return frames


def _one_chunk(engine: VideoEngine, stream: VideoStream) -> None:
    """Until its frames are there; nothing else is asked for, so that nothing of the next chunk is waited for."""
    assert stream.generate(stream.info.frames_per_chunk)
    while not stream.pull():
        engine.tick()


def _change_ms(engine: VideoEngine, stream: VideoStream, number: int) -> float:
    """The change comes as nothing is in flight, which is the best case."""
    start = time.perf_counter()
    stream.apply(Control.of({"prompt": f"another cat {number}"}))
    _one_chunk(engine, stream)
    elapsed_ms = 1e3 * (time.perf_counter() - start)
    stream.flush()
    return elapsed_ms
