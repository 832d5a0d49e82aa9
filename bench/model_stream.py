"""Measures a loadable video model through the engine: from its prompt and from a camera.

Shapes with random weights are in bench.video_stream.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch

from bench.machine import device_name
from bench.video_engine import EngineSettings, measure_engine, p95
from bench.video_options import load_model
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.video.engine import VideoEngine
from pipelines.video.model import VideoModel
from pipelines.video.options import VideoOptions

PROMPT = "a robot on the beach at sunset"
STRENGTH = 0.75
"""The video-to-video control that `measure_camera` sets."""
WARM_CHUNKS = 6
"""Untimed chunks at the start."""

Figures = dict[str, object]


def moving_pictures(height: int, width: int) -> Iterator[Frame]:
    """An endless camera: soft blobs that drift, uint8."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width)
    number = 0
    while True:
        angle = 2 * np.pi * (number / 48 + np.arange(3) / 3)
        near = (x[..., None] - 0.5 - 0.3 * np.cos(angle)) ** 2 + (y[..., None] - 0.5 - 0.3 * np.sin(angle)) ** 2
        image = (255 * np.exp(-12 * near)).astype(np.uint8)
        yield Frame(image=image, pts=number, time_base=Fraction(1, 16), seq=number)
        number += 1


def measure_camera(model: VideoModel, *, chunk_frames: int, chunks: int) -> Figures:
    """Frames a second of video to video in steady state, and latency from a chunk's last input to its first picture."""
    engine = VideoEngine(model, VideoOptions(max_streams=1, chunk_frames=chunk_frames))
    control = Control.of({"prompt": PROMPT, "strength": STRENGTH})
    made, starts = 0, 0.0
    waits: list[float] = []
    with engine.open(control) as stream:
        camera = moving_pictures(stream.info.height, stream.info.width)
        for number in range(WARM_CHUNKS + chunks):
            if number == WARM_CHUNKS:
                made, waits, starts = 0, [], time.perf_counter()
            for _ in range(stream.info.frames_per_chunk):
                assert stream.push(next(camera))
            pushed = time.perf_counter()
            frames: list[Frame] = []
            while not frames:
                engine.tick()
                frames = stream.pull()
            waits.append(time.perf_counter() - pushed)
            made += len(frames)
            while stream.busy:
                engine.tick()
        fps = made / (time.perf_counter() - starts)
    engine.close()
    return {
        "what": "camera",
        "chunk_latents": chunk_frames,
        "strength": STRENGTH,
        "end_to_end_fps": round(fps, 2),
        "input_to_picture_ms_p50": round(1e3 * statistics.median(waits), 1),
        "input_to_picture_ms_p95": round(1e3 * p95(waits), 1),
    }


def measure_model(options: argparse.Namespace) -> Figures:
    """Load the folder and measure every row: prompt only and camera, for each chunk length.

    options: bench.video_stream's.
    """
    started = time.perf_counter()
    model = load_model(options)
    load_s = time.perf_counter() - started
    runs: list[Figures] = []
    for frames in options.chunk_latents:
        settings = EngineSettings(window_frames=model.preset.window_frames, chunk_frames=frames, chunks=options.chunks)
        runs.append(measure_engine(model, settings))
        runs.append(measure_camera(model, chunk_frames=frames, chunks=options.chunks))
    return {
        "bench": "video_stream",
        "model": model.name,
        "size_px": list(model.size_px),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "passes": f"{len(model.preset.steps)} denoising steps and a clean pass",
        "policy": model.preset.policy,
        "torch": torch.__version__,
        "load_s": round(load_s, 2),
        "runs": runs,
    }
