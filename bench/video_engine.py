"""Measures the causal video engine: a model with random weights, a stream that is always kept full.

Everything in a live session except transport: controls, noise drawn on the CPU, the tick log, frames as arrays.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.video_shapes import VideoShape, build_runtime
from pipelines.backends.base import Backend
from pipelines.core.controls import Control
from pipelines.core.tick_log import BirthRecord, TickLog
from pipelines.core.types import Frame
from pipelines.video.codecs.codec import VideoCodec
from pipelines.video.engine import VideoEngine
from pipelines.video.loading.checkpoint_keys import KeyReport
from pipelines.video.model import VideoModel
from pipelines.video.options import VideoOptions
from pipelines.video.presets import VideoPreset
from pipelines.video.stream import VideoStream
from pipelines.video.wan.transformer import CausalWanTransformer


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """window_frames includes the chunk; both in latent frames. chunks: how many are timed."""

    window_frames: int
    chunk_frames: int
    chunks: int


class RandomText:
    """Random embeddings [text_len, text_dim] for every text."""

    def __init__(self, shape: VideoShape, device: torch.device, dtype: torch.dtype) -> None:
        self._shape, self._device, self._dtype = shape.transformer, device, dtype

    @property
    def text_dim(self) -> int:
        """Width of an embedding."""
        return self._shape.text_dim

    def encode(self, text: str) -> torch.Tensor:
        """Deterministic for each text."""
        random = torch.Generator().manual_seed(zlib.crc32(text.encode()))
        size = (self._shape.text_len, self._shape.text_dim)
        return torch.randn(size, generator=random).to(self._device, self._dtype)


def random_model(
    shape: VideoShape,
    transformer: CausalWanTransformer,
    codec: VideoCodec,
    settings: EngineSettings,
    backend: Backend,
) -> VideoModel:
    """A loaded model with random weights."""
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
        runtime=build_runtime(backend, transformer, codec),
        text=RandomText(shape, transformer.device, transformer.dtype),
        preset=preset,
        dtype=transformer.dtype,
        device=transformer.device,
        licence="none: random weights",
        commercial=True,
        weights=KeyReport(mapped={}, mismatched={}),
    )


def measure_engine(model: VideoModel, settings: EngineSettings) -> dict[str, object]:
    """Frames a second in steady state; milliseconds to the first frame, and from a prompt change to its first frame.

    For a model that takes actions also the latency from key press to picture, see `_action_figures`.
    """
    options = VideoOptions(
        max_streams=1,
        chunk_frames=settings.chunk_frames,
        window_frames=settings.window_frames,
    )
    births: list[BirthRecord] = []
    log = TickLog(sink=lambda record: births.append(record) if isinstance(record, BirthRecord) else None)
    engine = VideoEngine(model, options, tick_log=log)
    filling = -(-settings.window_frames // settings.chunk_frames)
    with engine.open(Control.of({"prompt": "a cat"})) as stream:
        _frames(engine, stream, 4 * settings.chunk_frames * (filling + 3))
        target = 4 * settings.chunk_frames * settings.chunks
        start, first_tick = time.perf_counter(), engine.core.next_tick
        made, seconds = _timed_chunks(engine, stream, target)
        fps, last_tick = made / (time.perf_counter() - start), engine.core.next_tick
        actions = _action_figures(engine, stream, births, fps) if model.takes_actions else {}
        stream.flush()
        prompts = [Control.of({"prompt": f"another cat {number}"}) for number in range(4)]
        change_ms = [_change_ms(engine, stream, change) for change in prompts]
    first_ms = []
    for _ in range(3):
        start = time.perf_counter()
        with engine.open(Control.of({"prompt": "a cat"})) as stream:
            _one_chunk(engine, stream)
            first_ms.append(1e3 * (time.perf_counter() - start))
    timings = [t for t in engine.log.timings() if first_tick <= t.tick < last_tick]
    figures = {
        "what": "engine",
        "backend": model.runtime.backend,
        "window_latents": settings.window_frames,
        "chunk_latents": settings.chunk_frames,
        "end_to_end_fps": round(fps, 2),
        "chunk_ms_p50": round(1e3 * statistics.median(seconds), 1),
        "chunk_ms_p95": round(1e3 * p95(seconds), 1),
        "pass_ms": round(statistics.median(t.denoise_ms for t in timings), 2),
        "kv_mib": round(engine.core.cache.bytes / 2**20, 2),
        "control_to_frame_ms_at_best": round(statistics.median(change_ms[1:]), 1),
        "first_frame_ms": round(first_ms[-1], 1),
        **actions,
    }
    engine.close()
    return figures


def p95(seconds: Sequence[float]) -> float:
    """The 95th percentile."""
    return sorted(seconds)[min(len(seconds) - 1, int(0.95 * len(seconds)))]


def _frames(engine: VideoEngine, stream: VideoStream, count: int) -> list[Frame]:
    """At least `count` frames; the stream is kept full."""
    frames: list[Frame] = []
    while len(frames) < count:
        frames += _tick(engine, stream)
    return frames


def _timed_chunks(engine: VideoEngine, stream: VideoStream, count: int) -> tuple[int, list[float]]:
    """At least `count` frames: (number of frames, seconds between chunks' pictures)."""
    made, seconds, last = 0, [], time.perf_counter()
    while made < count:
        finished = len(_tick(engine, stream))
        if finished:
            made += finished
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
    return made, seconds


def _tick(engine: VideoEngine, stream: VideoStream) -> list[Frame]:
    """The frames finished by a tick; the stream is kept full."""
    while stream.generate(stream.info.frames_per_chunk):
        pass
    engine.tick()
    return stream.pull()


def _one_chunk(engine: VideoEngine, stream: VideoStream) -> None:
    """Run one chunk until its frames are finished, without requesting more, so that no time goes to the next chunk."""
    assert stream.generate(stream.info.frames_per_chunk)
    while not stream.pull():
        engine.tick()


def _change_ms(engine: VideoEngine, stream: VideoStream, change: Control) -> float:
    """Latency of a change made while nothing is in flight: the best case."""
    start = time.perf_counter()
    stream.apply(change)
    _one_chunk(engine, stream)
    elapsed_ms = 1e3 * (time.perf_counter() - start)
    stream.flush()
    return elapsed_ms


def _action_figures(
    engine: VideoEngine, stream: VideoStream, births: Sequence[BirthRecord], fps: float
) -> dict[str, object]:
    """From a key press to the first picture that follows it, at the engine's full speed.

    frames: shown before it if the key is pressed right after a chunk has begun, the worst case. ms: worst case, best
    case (nothing in flight), and mean (half a chunk after the best). A live session shows frames at the stream's rate:
    there the frame count matters, not the milliseconds.
    """
    waits = [_after_chunk_start(engine, stream, births, Control(camera_x=float(turn % 2))) for turn in range(1, 6)]
    frames = max(count for count, _ in waits)
    stream.flush()
    best_ms = statistics.median(_change_ms(engine, stream, Control(camera_x=float(turn % 2))) for turn in range(4))
    return {
        "action_to_picture_frames": frames,
        "action_to_picture_ms_at_worst": round(statistics.median(ms for _, ms in waits), 1),
        "action_to_picture_ms_at_best": round(best_ms, 1),
        "action_to_picture_ms_mean": round(best_ms + 500 * len(births[-1].source_seqs) / fps, 1),
    }


def _after_chunk_start(
    engine: VideoEngine, stream: VideoStream, births: Sequence[BirthRecord], change: Control
) -> tuple[int, float]:
    """A change in steady state: (frames before the first one that shows it, milliseconds until that one)."""
    count = len(births)
    while len(births) == count:
        _tick(engine, stream)
    start, shown = time.perf_counter(), stream.accounting.out
    stream.apply(change)
    first = sum(len(birth.source_seqs) for birth in births)  # the next chunk's
    while stream.accounting.out <= first:
        _tick(engine, stream)
    return first - shown, 1e3 * (time.perf_counter() - start)
