"""Measures the image engine: frames a second, milliseconds by stage, ring-batched against sequential.

`python -m bench.image_stream --json`: the bundled model on the CPU, image-to-image, 2 steps, filter off.
`python -m bench.image_stream --shape sd-turbo --device cuda --json`: SD-Turbo's shape with random weights, 1, 2 and 4
steps, eager and as CUDA graphs, and streamdiffusion 0.1.1 for comparison. Every input frame is different.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch

from bench.command import bench_parser, print_runs
from bench.machine import device_name
from bench.plain_loop import PlainLoop
from pipelines.backends.table import BACKENDS
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.files.precision import cpu_flags
from pipelines.image.engine import ImageEngine
from pipelines.image.model import ImageModel
from pipelines.image.schedule import timesteps
from pipelines.image.stream import ImageStream

STRENGTH = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """frames: timed per round. rounds: ring and sequential alternate, so that both see the same machine load."""

    steps: int
    frames: int
    rounds: int = 1


def moving_frames(count: int, width: int, height: int) -> list[Frame]:
    """A textured picture that moves by 3 pixels per frame: all frames differ."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    base = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return [
        Frame(
            image=np.ascontiguousarray(np.roll(base, (3 * i, i), axis=(1, 0))),
            pts=i,
            time_base=Fraction(1, 24),
            seq=i,
        )
        for i in range(count)
    ]


def measure(model: ImageModel, settings: Settings, started: float) -> dict[str, object]:
    """Measure one configuration. started: perf_counter at the start of the time to the first frame."""
    engine, backend = ImageEngine(model), model.runtime.backend
    prompt = {"prompt": "a cat", "steps": settings.steps, "strength": STRENGTH, "guidance_mode": "none"}
    width, height = engine.core.width, engine.core.height
    with engine.open(Control.of({**prompt, "step_function": "lcm"})) as stream:
        pictures = moving_frames(settings.frames, width, height)
        while not stream.pull():
            stream.push(pictures[0])
            engine.tick()
        first_frame_s = time.perf_counter() - started
        for picture in pictures[:8]:  # warms up (and captures) every batch shape
            stream.push(picture)
            engine.tick()
            stream.pull()
        ring_s, sequential_s, first_tick = [], [], engine.core.next_tick
        for _ in range(settings.rounds):
            ring_s.append(_ring(engine, stream, pictures) / len(pictures))
            if backend == "eager":
                sequential_s.append(_sequential(model, settings.steps, pictures) / len(pictures))
        times = [t for t in engine.log.timings() if t.tick >= first_tick]
        stream.flush()
    figures: dict[str, object] = {
        "steps": settings.steps,
        "backend": backend,
        "fps": round(1 / statistics.median(ring_s), 2),
        "encode_ms": round(statistics.median(t.encode_ms for t in times), 3),
        "denoise_ms": round(statistics.median(t.denoise_ms for t in times), 3),
        "decode_ms": round(statistics.median(t.decode_ms for t in times), 3),
        "time_to_first_frame_s": round(first_frame_s, 3),
    }
    if sequential_s:
        figures["sequential_fps"] = round(1 / statistics.median(sequential_s), 2)
        pairs = zip(ring_s, sequential_s, strict=True)
        figures["ring_to_sequential"] = round(statistics.median(s / r for r, s in pairs), 3)
    engine.close()
    return figures


def _ring(engine: ImageEngine, stream: ImageStream, pictures: list[Frame]) -> float:
    """Seconds with one picture in and one out per tick, until the device is done."""
    start, out = time.perf_counter(), 0
    for picture in pictures:
        while not stream.push(picture):
            out += len(stream.pull())
        engine.tick()
        out += len(stream.pull())
    _synchronise(engine.core.model.device)
    seconds = time.perf_counter() - start
    stream.pull()
    assert out > 0
    return seconds


def _sequential(model: ImageModel, steps: int, pictures: list[Frame]) -> float:
    """Seconds of a plain loop over the same parts, picture by picture."""
    loop = PlainLoop(model, steps, STRENGTH)
    start = time.perf_counter()
    for picture in pictures:
        loop(picture.image)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bundled(options: argparse.Namespace) -> dict[str, object]:
    """The bundled model on the chosen device."""
    from pipelines.image.loading.load import LoadOptions, load_image_model

    started = time.perf_counter()
    model = load_image_model("mini-image", LoadOptions(device=options.device, dtype=options.dtype))
    settings = Settings(steps=2, frames=options.frames, rounds=3)
    return {**describe_run(model, "image_stream"), "runs": [measure(model, settings, started)], **memory_figures(model)}


def random_shape(options: argparse.Namespace) -> dict[str, object]:
    """A published shape with random weights; random embeddings replace the text encoder."""
    from bench.peer import peer_fps
    from bench.shapes import SHAPES, build

    device = torch.device(options.device)
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    parts = build(SHAPES[options.shape], device, dtype)
    backends = ("eager", "cuda-graph") if device.type == "cuda" else ("eager",)
    runs: list[dict[str, object]] = []
    for steps in (1, 2, 4):
        for backend in backends:
            settings = Settings(steps=steps, frames=options.frames)
            runs.append(measure(parts.model_with(BACKENDS[backend]), settings, time.perf_counter()))
        pictures = moving_frames(options.frames + 10, *parts.model.size_px)
        inputs = [torch.from_numpy(p.image).permute(2, 0, 1)[None].float() / 255 for p in pictures]
        peer = peer_fps(parts, timesteps(parts.model.schedule, steps, STRENGTH), inputs, warmup=10)
        runs.append({"steps": steps, "backend": "streamdiffusion 0.1.1, eager", "fps": peer})
    weights = "random; random embeddings stand in for the text encoder"
    return {
        **describe_run(parts.model, "image_stream"),
        "shape": options.shape,
        "weights": weights,
        "runs": runs,
        **memory_figures(parts.model),
    }


def describe_run(model: ImageModel, bench: str) -> dict[str, object]:
    """Return what every figure stands beside: model, device, dtype, versions."""
    return {
        "bench": bench,
        "model": model.name,
        "size_px": list(model.size_px),
        "device": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "cpu_flags": list(cpu_flags()),
        "torch": torch.__version__,
    }


def memory_figures(model: ImageModel) -> dict[str, object]:
    """Return the peak memory of the process and of the GPU."""
    # Linux counts in KiB, macOS in bytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    figures: dict[str, object] = {"peak_rss_mib": round(peak)}
    if model.device.type == "cuda":
        figures["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated(model.device) / 2**20)
    return figures


def main() -> int:
    parser = bench_parser("image_stream", __doc__)
    parser.add_argument("--shape", choices=("sd-turbo", "tiny"), help="random weights in this shape")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="auto", help="of the bundled model: auto, float32, bfloat16, float16")
    parser.add_argument("--frames", type=int, default=60, help="timed frames per round")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    figures = random_shape(options) if options.shape else bundled(options)
    print_runs(figures, one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
