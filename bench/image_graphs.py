"""Owns the yardstick of the image engine: its networks in bare CUDA graphs, without slots, controls or copies.

Independent of the engine. On the CPU, without graphs, the same calls run one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from pipelines.image.model import Condition, ImageModel

_ROUNDS = 4  # issued before the host looks at the clock


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """What one graph does. encoded: pictures encoded, and as many decoded. rows: of the denoiser's batch."""

    encoded: int
    rows: int


def bare_fps(model: ImageModel, frames: Frames, side_by_side: int, seconds: float) -> float:
    """Return the frames a second of so many graphs at once, each on its own CUDA stream; the best of three runs."""
    with torch.inference_mode():
        calls = [_graph(_body(model, frames), model.device) for _ in range(side_by_side)]
        runs = [_run(calls, model.device, seconds / 3) for _ in range(4)]  # the first warms up
    return frames.encoded * max(runs[1:])


def _body(model: ImageModel, frames: Frames) -> Callable[[], None]:
    """Return the work of one tick on buffers of its own: from pictures in bytes to pictures in bytes."""
    runtime, device, (width, height) = model.runtime, model.device, model.size_px
    factor = runtime.codec.factor
    text = model.prompts.encode("a cat").embeds[None]
    if runtime.projection is not None:
        text = runtime.projection.project(text)
    row = torch.zeros(frames.rows, dtype=torch.int64, device=device)
    condition = Condition(
        embeds=text.expand(frames.rows, *text.shape[1:]).contiguous(), pooled=None, time_ids=None, row=row, step=row
    )
    pictures = torch.zeros((frames.encoded, height, width, 3), dtype=torch.uint8, device=device)
    noise = torch.randn((frames.rows, runtime.codec.latent_channels, height // factor, width // factor), device=device)
    timestep = torch.full((frames.rows,), 499, device=device)

    def body() -> None:
        images = pictures.permute(0, 3, 1, 2).float().div(127.5).sub(1.0)
        latents = 0.7 * noise
        latents[: frames.encoded] += 0.7 * runtime.codec.encode(images)
        clean = runtime.denoiser(latents, timestep, condition)
        out = runtime.codec.decode(clean[: frames.encoded])
        pictures.copy_(out.add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))

    return body


def _graph(body: Callable[[], None], device: torch.device) -> Callable[[], None]:
    if device.type != "cuda":
        return body
    cuda_stream, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    with torch.cuda.stream(cuda_stream):
        for _ in range(3):
            body()
    with torch.cuda.graph(graph, stream=cuda_stream):
        body()

    def replay() -> None:
        with torch.cuda.stream(cuda_stream):
            graph.replay()

    return replay


def _run(calls: list[Callable[[], None]], device: torch.device, seconds: float) -> float:
    """Return calls a second."""
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(_ROUNDS):
            for call in calls:
                call()
        count += _ROUNDS * len(calls)
        if device.type == "cuda" and count % (4 * _ROUNDS * len(calls)) == 0:
            torch.cuda.synchronize(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return count / (time.perf_counter() - start)
