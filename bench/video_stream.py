"""Measures the causal video engine: frames a second with and without the decoder, latencies, memory.

`python -m bench.video_stream --json`: the bundled mini-video (or `--model FOLDER`) through the engine, from its prompt
and from a camera.
`python -m bench.video_stream --shape wan-1.3b --device cuda --json`: Wan 2.1 1.3B's shape at 480×832 with random
weights, 4 denoising steps and a clean pass, for each window; compared with the arithmetic bound and with the
transformer of diffusers' AnyFlowFARPipeline at the same shape. `--shape tiny` runs on the CPU in seconds.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from bench.command import bench_parser, print_runs
from bench.machine import device_name
from bench.model_stream import measure_model
from bench.video_engine import EngineSettings, measure_engine, p95, random_model
from bench.video_loop import ChunkLoop, FrameOutput, LoopSettings
from bench.video_options import MODEL
from bench.video_peer import RELEASED_FULL_CHUNKS, PeerSettings, measure_peer
from bench.video_profile import matmul_tflops, profile
from bench.video_shapes import (
    VIDEO_SHAPES,
    VideoShape,
    attention_of,
    build_codec,
    build_runtime,
    build_transformer,
)
from cache.kv.bank import STORAGES
from pipelines.backends.table import BACKENDS, choose_backend
from pipelines.video.codecs.codec import FrameDecoder
from pipelines.video.model import VideoRuntime
from pipelines.video.wan.transformer import CausalWanTransformer

Figures = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What all measurements of a run share. chunks: timed in each."""

    shape: VideoShape
    transformer: CausalWanTransformer
    device: torch.device
    dtype: torch.dtype
    chunks: int
    backend: str

    def synchronise(self) -> None:
        """Wait until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, call: Callable[[], object], times: int = 1) -> float:
        """Seconds of `times` calls, until the device is done."""
        self.synchronise()
        start = time.perf_counter()
        for _ in range(times):
            call()
        self.synchronise()
        return time.perf_counter() - start


def measure_loop(bench: Bench, settings: LoopSettings, backend: str) -> tuple[ChunkLoop, Figures]:
    """The transformer only: chunks of latents in steady state."""
    loop = ChunkLoop(bench.transformer, bench.shape, settings, _runtime(bench, backend, "tiny"))
    frames, window = settings.chunk_frames, settings.window_frames
    warm_up_s = bench.seconds(loop.chunk, loop.filling_chunks + 3)
    seconds = [bench.seconds(loop.chunk) for _ in range(bench.chunks)]
    chunk_s = bench.seconds(loop.chunk, bench.chunks) / bench.chunks
    denoising_s = bench.seconds(loop.denoise, bench.chunks) / bench.chunks
    fps = 4 * frames / chunk_s
    floor = bench.shape.floor_fps(frames, window, loop.passes)
    return loop, {
        "what": "transformer",
        "backend": backend,
        "window_latents": window,
        "chunk_latents": frames,
        "loop_fps": round(fps, 2),
        "loop_fps_without_clean_pass": round(4 * frames / denoising_s, 2),
        "chunk_ms": round(1e3 * chunk_s, 2),
        "chunk_p95_ms": round(1e3 * p95(seconds), 2),
        "tflop_per_pass": round(bench.shape.pass_tflop(frames, window), 2),
        "tflops": round(loop.passes * bench.shape.pass_tflop(frames, window) / chunk_s, 1),
        "floor_fps_at_990_tflops": round(floor, 1),
        "percent_of_floor": round(100 * fps / floor, 1),
        "kv_mib": round(loop.cache.bytes / 2**20),
        "kv_storage": loop.cache.storage,
        "warm_up_s": round(warm_up_s, 1),
    }


def measure_frames(
    bench: Bench, loop: ChunkLoop, codec: str, *, overlapped: bool
) -> tuple[Callable[[], None], Figures]:
    """The same with the decoder, up to frames in host memory; and the latencies."""
    decoder = _decoder(bench, codec)
    output = FrameOutput(decoder, bench.device, overlapped=overlapped)

    def chunk() -> None:
        latents = loop.denoise()
        output.send(latents)
        loop.finish(latents)

    def first_frames() -> None:
        output.send(loop.denoise())
        output.wait()

    def changed() -> None:
        loop.text.write(0, loop.embeddings)
        first_frames()

    for _ in range(loop.filling_chunks + 3):
        chunk()
    chunk_s = bench.seconds(chunk, bench.chunks) / bench.chunks
    decode_s = _decode_seconds(bench, loop, decoder)
    change_s = []
    for _ in range(3):
        bench.synchronise()
        start = time.perf_counter()
        changed()
        change_s.append(time.perf_counter() - start)
    best_ms = 1e3 * statistics.median(change_s)
    figures = {
        "what": "frames",
        "codec": codec,
        "overlapped": overlapped,
        "backend": bench.backend,
        "window_latents": loop.settings.window_frames,
        "chunk_latents": loop.settings.chunk_frames,
        "end_to_end_fps": round(4 * loop.settings.chunk_frames / chunk_s, 2),
        "chunk_ms": round(1e3 * chunk_s, 2),
        "decode_ms": round(1e3 * decode_s, 2),
        "control_to_frame_ms_at_best": round(best_ms, 1),
        "control_to_frame_ms_mean": round(best_ms + 500 * chunk_s, 1),
        "first_frame_ms": round(1e3 * _first_frame_seconds(bench, loop, decoder, changed), 1),
        "codec_state_mib": round(decoder.decoder.bytes / 2**20),
        **_memory(bench),
    }
    return chunk, figures


def _runtime(bench: Bench, backend: str, codec: str) -> VideoRuntime:
    chosen = choose_backend(backend, "video", bench.device).backend
    parts = build_codec(codec, bench.shape, bench.device, _codec_dtype(bench, codec))
    return build_runtime(chosen, bench.transformer, parts)


def _decoder(bench: Bench, codec: str) -> FrameDecoder:
    runtime, shape = _runtime(bench, bench.backend, codec), bench.shape
    return runtime.make_frame_decoder(runtime.make_executor(), height=shape.height_px, width=shape.width_px)


def _codec_dtype(bench: Bench, codec: str) -> torch.dtype:
    """The tiny codec's published weights are float16; the stock one overflows in float16."""
    return torch.float16 if codec == "tiny" and bench.device.type == "cuda" else bench.dtype


def _decode_seconds(bench: Bench, loop: ChunkLoop, decoder: FrameDecoder) -> float:
    latents = loop.noise()
    return statistics.median(bench.seconds(lambda: decoder.decode(latents)) for _ in range(5))


def _first_frame_seconds(
    bench: Bench, loop: ChunkLoop, decoder: FrameDecoder, first_frames: Callable[[], None]
) -> float:
    """From opening a stream, including its prompt, to its first frames: warm, the last of three."""
    seconds = 0.0
    for _ in range(3):
        loop.reset()
        decoder.decoder.reset()
        bench.synchronise()
        start = time.perf_counter()
        first_frames()
        seconds = time.perf_counter() - start
    loop.reset()
    decoder.decoder.reset()
    return seconds


def _memory(bench: Bench) -> Figures:
    if bench.device.type != "cuda":
        return {}
    figures: Figures = {"peak_gpu_mib": round(torch.cuda.max_memory_allocated(bench.device) / 2**20)}
    torch.cuda.reset_peak_memory_stats(bench.device)
    return figures


def run(options: argparse.Namespace) -> Figures:
    """Run everything that the options request."""
    shape, device = VIDEO_SHAPES[options.shape], torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    started = time.perf_counter()
    transformer = build_transformer(shape, device, dtype)
    backend = options.backend or ("compiled" if device.type == "cuda" else "eager")
    bench = Bench(
        shape=shape, transformer=transformer, device=device, dtype=dtype, chunks=options.chunks, backend=backend
    )
    bench.synchronise()
    runs: list[Figures] = []
    figures = {**_machine(bench, options.shape), "build_s": round(time.perf_counter() - started, 1), "runs": runs}
    windows = options.windows or list(shape.windows)
    for frames in options.chunk_latents:
        for window in windows:
            settings = LoopSettings(window_frames=window, chunk_frames=frames, storage=options.storage)
            _configuration(bench, settings, options, runs, thorough=window == windows[-1])
    for name in options.compare:
        _, row = measure_loop(bench, LoopSettings(window_frames=windows[-1]), name)
        _keep(runs, row)
    if options.peer:
        del bench, transformer
        for peer in _peers(shape, windows[-1], device, dtype):
            _tidy(device)
            _keep(runs, measure_peer(peer))
    return figures


def _peers(shape: VideoShape, window: int, device: torch.device, dtype: torch.dtype) -> list[PeerSettings]:
    """Our window in full; the released checkpoints' three chunks in full; the latter eager. On the CPU eager only."""
    chunks = window // 3
    kinds = ((chunks, True), (RELEASED_FULL_CHUNKS, False), (RELEASED_FULL_CHUNKS, True))
    return [
        PeerSettings(
            shape=shape,
            window_frames=3 * chunks,
            device=device,
            dtype=dtype,
            compiled=compiled,
            full_chunks=min(full_chunks, chunks),
        )
        for full_chunks, compiled in kinds
        if device.type == "cuda" or not compiled
    ]


def _configuration(
    bench: Bench, settings: LoopSettings, options: argparse.Namespace, runs: list[Figures], *, thorough: bool
) -> None:
    """thorough: also the decoder on a separate CUDA stream, the profile, and the engine with every codec."""
    loop, row = measure_loop(bench, settings, bench.backend)
    _keep(runs, row)
    codecs = options.codecs if settings.chunk_frames > 1 else options.codecs[:1]
    for codec in codecs:
        for overlapped in (False, True) if thorough and bench.device.type == "cuda" else (False,):
            chunk, row = measure_frames(bench, loop, codec, overlapped=overlapped)
            if options.profile and thorough and not overlapped and settings.chunk_frames > 1:
                for _ in range(loop.filling_chunks + 3):
                    chunk()
                row["profile"] = profile(bench.device, chunk)
            _keep(runs, row)
            del chunk
            _tidy(bench.device)
    del loop
    for codec in codecs if thorough else codecs[:1]:
        _tidy(bench.device)
        _keep(runs, {**_through_the_engine(bench, settings, codec), "codec": codec})


def _through_the_engine(bench: Bench, settings: LoopSettings, codec: str) -> Figures:
    engine_settings = EngineSettings(
        window_frames=settings.window_frames,
        chunk_frames=settings.chunk_frames,
        chunks=bench.chunks,
    )
    dtype = _codec_dtype(bench, codec)
    parts = build_codec(codec, bench.shape, bench.device, dtype)
    model = random_model(bench.shape, bench.transformer, parts, engine_settings, BACKENDS[bench.backend])
    figures = measure_engine(model, engine_settings)
    return {**figures, **_memory(bench)}


def _keep(runs: list[Figures], row: Figures) -> None:
    """Print rows as they come, so that an interrupted run has printed them."""
    runs.append(row)
    print(json.dumps(row), file=sys.stderr, flush=True)


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _machine(bench: Bench, shape: str) -> Figures:
    return {
        "bench": "video_stream",
        "shape": shape,
        "size_px": [bench.shape.width_px, bench.shape.height_px],
        "weights": "random; random embeddings stand in for the text encoder",
        "device": device_name(bench.device),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "attention": attention_of(bench.transformer).name,
        "passes": "4 denoising steps and a clean pass",
        "matmul_8192_tflops": matmul_tflops(bench.device),
        "torch": torch.__version__,
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    options = bench_parser("video_stream", __doc__)
    options.add_argument("--shape", choices=tuple(VIDEO_SHAPES), help="random weights in this shape, and not a model")
    options.add_argument("--model", default=str(MODEL), help="a model folder, without --shape")
    options.add_argument("--dtype", default="auto", help="of a model: auto, float32, bfloat16 or float16")
    options.add_argument("--autoencoder", default="auto", help="of a model: auto, stock or tiny")
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    options.add_argument("--backend", choices=tuple(BACKENDS), help="default: the fastest of the device")
    options.add_argument("--windows", type=int, nargs="+", help="latent frames; default: those of the shape")
    options.add_argument(
        "--chunk-latents", type=int, nargs="+", default=[3, 1], help="latent frames; 1: first codec only"
    )
    options.add_argument("--codecs", nargs="*", choices=("tiny", "stock"), default=["tiny", "stock"])
    options.add_argument(
        "--storage", choices=("auto", *STORAGES), default="auto", help="of keys and values; not of the engine's rows"
    )
    options.add_argument("--compare", nargs="*", choices=tuple(BACKENDS), default=[], help="other backends")
    options.add_argument("--chunks", type=int, default=10, help="timed chunks")
    options.add_argument("--no-peer", dest="peer", action="store_false", help="skip diffusers' transformer")
    options.add_argument("--profile", action="store_true", help="kernels by kind, of chunks of more than one latent")
    options.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    return options


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True
    figures = run(options) if options.shape else measure_model(options)
    print_runs(figures, one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
