"""The contestants of causal video: the peers' transformers, our transformer alone, and this engine end to end.

A case names mini-video's shape, whose weights ours uses, or a published shape with random weights. The functions that
make subjects run in the contestants' own processes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from app.measure.live import LiveEngine, LiveRun, LiveSubject
from app.measure.meters import PeakMemory, peak_memory
from app.measure.subject import Begun
from bench.call_subject import About, Calls, CallSubject
from bench.contest import Contestant
from bench.flashdreams_peer import FlashdreamsPeer, FlashdreamsSettings
from bench.video_engine import EngineSettings, random_model
from bench.video_loop import ChunkLoop, LoopSettings
from bench.video_peer import RELEASED_FULL_CHUNKS, AnyFlowPeer, PeerSettings
from bench.video_peer import STEPS as PEER_STEPS
from bench.video_shapes import VIDEO_SHAPES, VideoShape, build_codec, build_runtime, build_transformer
from pipelines.backends.table import BACKENDS, refusal_of
from pipelines.core.controls import Control
from pipelines.video.codecs.codec import VideoCodec
from pipelines.video.model import VideoModel
from pipelines.video.wan.transformer import CausalWanTransformer

FLASHDREAMS = "flashdreams==0.1.0"
TRANSFORMER_ALONE = "the transformer alone: 4 denoising passes and a clean pass for each chunk; no decoder"
_RANDOM = "random weights in the same shape, on which speed does not depend"


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCase:
    """model: mini-video, or a row of bench.video_shapes.VIDEO_SHAPES. window_frames, chunk_frames: latent frames.

    autotuned: flashdreams also as it comes, which compiles for many minutes. threads: CPU threads of PyTorch.
    """

    model: str
    device: str
    window_frames: int
    chunk_frames: int = 3
    autotuned: bool = False
    threads: int = 0
    warm_up_s: float = 5.0

    @property
    def random(self) -> bool:
        """Whether our weights are random, too."""
        return self.model in VIDEO_SHAPES


def contestants(case: VideoCase) -> list[Contestant]:
    """Peers and ours in turns. What cannot run here is among them, with the reason."""
    cuda = torch.device(case.device).type == "cuda"
    needs_cuda = "" if cuda else "it needs CUDA: Triton kernels and cuDNN's attention"
    flash = {"module": "flashdreams", "pip": f"pip install {FLASHDREAMS}", "refusal": needs_cuda}
    peers = [
        Contestant(name="flashdreams 0.1.0", ours=False, make=partial(flashdreams, case, False), **flash),
        Contestant(name="diffusers AnyFlow-FAR, window in full", ours=False, make=partial(anyflow, case, True)),
        Contestant(name="diffusers AnyFlow-FAR, as released", ours=False, make=partial(anyflow, case, False)),
    ]
    if case.autotuned:
        make = partial(flashdreams, case, True)
        peers.append(Contestant(name="flashdreams 0.1.0, max-autotune", ours=False, make=make, **flash))
    alone = [_ours(case, f"zoetrope transformer alone, {name}", name, transformer_alone) for name in BACKENDS]
    whole = [_ours(case, f"zoetrope end to end, {name}", name, end_to_end) for name in BACKENDS]
    ours = [entry for pair in zip(alone, whole, strict=True) for entry in pair]
    mixed = [entry for pair in zip(peers, ours, strict=False) for entry in pair]
    return mixed + ours[len(peers) :]


def _ours(case: VideoCase, name: str, backend: str, make: Callable[..., Any]) -> Contestant:
    refusal = refusal_of(BACKENDS[backend], "video", torch.device(case.device))
    text = "" if refusal is None else f"{refusal.message} {refusal.remedy}".rstrip()
    return Contestant(name=name, ours=True, make=partial(make, case, backend), refusal=text)


def flashdreams(case: VideoCase, autotuned: bool, begun: Begun) -> CallSubject:
    """flashdreams' transformer with its CUDA graphs; autotuned: compiled as it comes."""
    memory, given = _begin(case), networks_of(case)
    settings = FlashdreamsSettings(
        shape=given.shape,
        window_frames=case.window_frames,
        chunk_frames=case.chunk_frames,
        device=torch.device(case.device),
        dtype=given.dtype,
        autotuned=autotuned,
    )
    chunk = FlashdreamsPeer(settings).chunk
    backend = f"CUDA graph of torch.compile ({'max-autotune' if autotuned else 'default mode'})"
    about = _about(case, given, "flashdreams 0.1.0 Wan21Transformer", backend, note=_RANDOM)
    return CallSubject(_calls(case, chunk), about, memory, settings.device, begun)


def anyflow(case: VideoCase, in_full: bool, begun: Begun) -> CallSubject:
    """diffusers' transformer: our window in full, its blocks compiled on CUDA; or as released: three chunks in full,
    older ones compressed, eager."""
    import diffusers

    memory, given, device = _begin(case), networks_of(case), torch.device(case.device)
    chunks = case.window_frames // case.chunk_frames
    settings = PeerSettings(
        shape=given.shape,
        window_frames=chunks * case.chunk_frames,
        chunk_frames=case.chunk_frames,
        device=device,
        dtype=given.dtype,
        compiled=in_full and device.type == "cuda",
        full_chunks=chunks if in_full else min(RELEASED_FULL_CHUNKS, chunks),
    )
    peer = AnyFlowPeer(settings)

    def chunk() -> None:
        for _ in range(PEER_STEPS):
            peer.denoise()
        peer.write_cache()
        _wait(device)

    backend = "compile_repeated_blocks" if settings.compiled else "eager"
    name = f"diffusers {diffusers.__version__} AnyFlowFARTransformer3DModel"
    about = _about(case, given, name, backend, note=f"{_RANDOM}; its cache pass encodes all frames so far again")
    return CallSubject(_calls(case, chunk, warm_up_calls=3), about, memory, device, begun)


def transformer_alone(case: VideoCase, backend: str, begun: Begun) -> CallSubject:
    """Our transformer with its cache, in a minimal loop."""
    memory, given, device = _begin(case), networks_of(case), torch.device(case.device)
    runtime = build_runtime(BACKENDS[backend], given.transformer, given.codec)
    settings = LoopSettings(window_frames=case.window_frames, chunk_frames=case.chunk_frames)
    loop = ChunkLoop(given.transformer, given.shape, settings, runtime)

    def chunk() -> None:
        loop.chunk()
        _wait(device)

    about = _about(case, given, "zoetrope, transformer alone", backend)
    return CallSubject(_calls(case, chunk), about, memory, device, begun)


def end_to_end(case: VideoCase, backend: str, begun: Begun) -> LiveSubject:
    """This project's engine from the prompt to frames in host memory, with the tiny decoder."""
    from pipelines.video.engine import VideoEngine
    from pipelines.video.options import VideoOptions

    memory = _begin(case)
    if case.random:
        given = networks_of(case)
        sizes = EngineSettings(window_frames=case.window_frames, chunk_frames=case.chunk_frames, chunks=0)
        model = random_model(given.shape, given.transformer, given.codec, sizes, BACKENDS[backend])
    else:
        model = _bundled(case, backend)
    options = VideoOptions(max_streams=1, chunk_frames=case.chunk_frames, window_frames=case.window_frames)
    live = LiveEngine(
        engine=VideoEngine(model, options),
        model=case.model,
        device=torch.device(case.device),
        weights=_weights(case),
        why="one of those compared",
        threads=torch.get_num_threads(),
        load_s=begun.elapsed_s,
        memory=memory,
    )
    run = LiveRun(
        control=Control.of({"prompt": "a cat"}),
        warm_up_s=case.warm_up_s,
        warm_up_frames=4 * (case.window_frames + 2 * case.chunk_frames),
    )
    return LiveSubject(live, run, begun)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Networks:
    """A shape, and our networks in it: mini-video's, or random ones."""

    shape: VideoShape
    transformer: CausalWanTransformer
    codec: VideoCodec

    @property
    def dtype(self) -> torch.dtype:
        """The transformer's."""
        return self.transformer.dtype


def networks_of(case: VideoCase) -> Networks:
    """Build or load the networks of a case. On CUDA random weights are bfloat16, the tiny codec's float16."""
    device = torch.device(case.device)
    if case.random:
        shape, cuda = VIDEO_SHAPES[case.model], device.type == "cuda"
        transformer = build_transformer(shape, device, torch.bfloat16 if cuda else torch.float32)
        codec = build_codec("tiny", shape, device, torch.float16 if cuda else torch.float32)
        return Networks(shape=shape, transformer=transformer, codec=codec)
    model = _bundled(case, "eager")
    width, height = model.size_px
    unused = VIDEO_SHAPES["tiny"]
    shape = VideoShape(
        transformer=model.transformer.config,
        width_px=width,
        height_px=height,
        windows=(case.window_frames,),
        tiny_vae=unused.tiny_vae,
        wan_vae=unused.wan_vae,
    )
    return Networks(shape=shape, transformer=model.transformer, codec=model.codec)


def _bundled(case: VideoCase, backend: str) -> VideoModel:
    from pipelines.video.loading.load import VideoLoadOptions, load_video_model

    return load_video_model(case.model, VideoLoadOptions(device=case.device), BACKENDS[backend].video)


def _begin(case: VideoCase) -> PeakMemory:
    if case.threads:
        torch.set_num_threads(case.threads)
    torch.backends.cudnn.benchmark = True
    return peak_memory(torch.device(case.device))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _weights(case: VideoCase) -> str:
    return "random" if case.random else "bundled"


def _about(case: VideoCase, given: Networks, subject: str, backend: str, *, note: str = "") -> About:
    return About(
        subject=subject,
        model=case.model,
        weights="random" if note else _weights(case),
        size_px=(given.shape.width_px, given.shape.height_px),
        task=f"chunks of {case.chunk_frames} latents, window {case.window_frames}",
        steps=PEER_STEPS,
        dtype=given.dtype,
        backend=backend,
        counted=TRANSFORMER_ALONE,
        gap_of=f"chunks of {4 * case.chunk_frames} frames",
        latency="latents do not leave it as pictures",
        notes=(note,) if note else (),
    )


def _calls(case: VideoCase, chunk: Callable[[], None], warm_up_calls: int = 0) -> Calls:
    """warm_up_calls: 0: until the window is full, and three more."""
    filling = -(-case.window_frames // case.chunk_frames)
    return Calls(
        call=chunk,
        frames=4 * case.chunk_frames,
        depth=0,
        warm_up_calls=warm_up_calls or filling + 3,
        warm_up_s=case.warm_up_s,
    )
