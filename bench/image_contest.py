"""The contestants of image to image: the peers and this engine with every backend, on the same weights.

A case names the bundled model or a published shape with random weights. The functions that make subjects run in the
contestants' own processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle

import torch

from app.measure.camera import endless_camera
from app.measure.live import HOST_TO_HOST, PUSH_TO_PICTURE, LiveEngine, LiveRun, LiveSubject
from app.measure.meters import PeakMemory, peak_memory
from app.measure.subject import Begun
from bench.call_subject import About, Calls, CallSubject
from bench.contest import Contestant
from bench.image_peers import AutoPipelinePeer, StreamDiffusionPeer
from bench.image_stream import moving_frames
from bench.plain_loop import PlainLoop
from bench.shapes import SHAPES, Parts, build
from pipelines.backends.table import BACKENDS, refusal_of
from pipelines.core.controls import Control
from pipelines.core.origin import Origin
from pipelines.core.types import Frame, Picture
from pipelines.files.loader_options import LoaderOptions
from pipelines.kinds.base import engine_origin

STREAMDIFFUSION = "streamdiffusion==0.1.1"
_PICTURES = 48
_NO_EPSILON = "it knows epsilon only: with this model's v-prediction its pictures are wrong, its speed is not"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageCase:
    """model: a bundled name, or a row of bench.shapes.SHAPES. streams: of ours. threads: CPU threads of PyTorch."""

    model: str
    device: str
    steps: int
    strength: float = 0.5
    streams: int = 1
    threads: int = 0
    warm_up_s: float = 5.0

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.model in SHAPES


def contestants(case: ImageCase) -> list[Contestant]:
    """Peers and ours in turns. Backends that cannot run here are among them, with the reason."""
    peers = [
        _peer(case, "plain loop", plain_loop),
        _peer(case, "diffusers AutoPipelineForImage2Image", auto_pipeline),
        _peer(case, "streamdiffusion 0.1.1", streamdiffusion, module="streamdiffusion"),
        _peer(case, "streamdiffusion 0.1.1, UNet compiled", streamdiffusion_compiled, module="streamdiffusion"),
    ]
    ours = [_ours(case, name, 1) for name in BACKENDS]
    if case.streams > 1:
        ours += [_ours(case, name, case.streams) for name in BACKENDS]
    mixed = [entry for pair in zip(peers, ours, strict=False) for entry in pair]
    return mixed + peers[len(ours) :] + ours[len(peers) :]


def _peer(case: ImageCase, name: str, make: Callable[..., CallSubject], module: str = "") -> Contestant:
    pip = f"pip install --no-deps {STREAMDIFFUSION}" if module else ""
    return Contestant(name=name, ours=False, make=partial(make, replace(case, streams=1)), module=module, pip=pip)


def _ours(case: ImageCase, backend: str, streams: int) -> Contestant:
    refusal = refusal_of(BACKENDS[backend], "image", torch.device(case.device))
    return Contestant(
        name=f"zoetrope, {backend}" + (f", {streams} streams" if streams > 1 else ""),
        ours=True,
        make=partial(ours, replace(case, streams=streams), backend),
        refusal="" if refusal is None else f"{refusal.message} {refusal.remedy}".rstrip(),
    )


def ours(case: ImageCase, backend: str, begun: Begun) -> LiveSubject:
    """This project's engine with a backend."""
    from pipelines.image.engine import ImageEngine

    parts, memory = load_parts(case)
    notices: list[str] = []
    networks = replace(parts.networks, origin=_origin(case, parts, backend), notice=begun.noting(notices))
    model = replace(parts, networks=networks).model_with(BACKENDS[backend])
    model = replace(model, defaults={**model.defaults, "steps": case.steps})  # what an engine prepares for
    live = LiveEngine(
        engine=ImageEngine(model, max_slots=max(8, case.streams * case.steps)),
        model=case.model,
        device=parts.model.device,
        weights="random" if case.random else "bundled",
        why="one of those compared",
        threads=torch.get_num_threads(),
        load_s=begun.elapsed_s,
        memory=memory,
        notices=notices,
    )
    prompt = {"prompt": "a cat", "guidance_mode": "none", "step_function": "lcm"}
    control = Control.of({**prompt, "steps": case.steps, "strength": case.strength})
    run = LiveRun(control=control, camera=_camera, streams=case.streams, warm_up_s=case.warm_up_s)
    return LiveSubject(live, run, begun)


def plain_loop(case: ImageCase, begun: Begun) -> CallSubject:
    """One picture after the other, with our parts, eagerly."""
    loaded = load_parts(case)
    call = PlainLoop(loaded[0].model, case.steps, case.strength)
    return _calling(call, case, loaded, ("plain loop", "eager"), begun)


def auto_pipeline(case: ImageCase, begun: Begun) -> CallSubject:
    """diffusers' own pipeline, eagerly."""
    import diffusers

    loaded = load_parts(case)
    call = AutoPipelinePeer(loaded[0], steps=case.steps, strength=case.strength)
    name = f"diffusers {diffusers.__version__} AutoPipelineForImage2Image"
    return _calling(call, case, loaded, (name, "eager"), begun)


def streamdiffusion(case: ImageCase, begun: Begun, *, compiled: bool = False) -> CallSubject:
    """streamdiffusion 0.1.1 as its pipeline class runs, without its own TensorRT acceleration."""
    loaded = load_parts(case)
    call = StreamDiffusionPeer(loaded[0], steps=case.steps, strength=case.strength, compiled=compiled)
    backend = 'UNet by torch.compile(mode="reduce-overhead")' if compiled else "eager"
    about = ("streamdiffusion 0.1.1", backend)
    return _calling(call, case, loaded, about, begun, depth=case.steps)


def streamdiffusion_compiled(case: ImageCase, begun: Begun) -> CallSubject:
    """The same with its UNet compiled."""
    return streamdiffusion(case, begun, compiled=True)


def load_parts(case: ImageCase) -> tuple[Parts, PeakMemory]:
    """The networks of the case, loaded, and the meter of peak memory, begun before."""
    if case.threads:
        torch.set_num_threads(case.threads)
    device = torch.device(case.device)
    memory = peak_memory(device)
    if case.random:
        return build(SHAPES[case.model], device, torch.float16 if device.type == "cuda" else torch.float32), memory
    from pipelines.image.loading.load import LoadOptions, load_image_model
    from pipelines.image.model import ImageNetworks, ImageRuntime
    from pipelines.image.runtime import plain_runtime

    found: list[ImageNetworks] = []

    def keep(networks: ImageNetworks) -> ImageRuntime:
        found.append(networks)
        return plain_runtime(networks)

    model = load_image_model(case.model, LoadOptions(device=case.device), keep)
    return Parts(shape=case.model, networks=found[0], model=model), memory


def _origin(case: ImageCase, parts: Parts, backend: str) -> Origin:
    """Where another process finds the same engine, to compile its parts."""
    if not case.random:
        return engine_origin(case.model, LoaderOptions(device=case.device), backend, bundled=True)
    return Origin(
        model=f"{case.model}, random weights",
        module="bench.shapes",
        function="shape_engine",
        arguments={
            "shape": case.model,
            "device": case.device,
            "dtype": parts.model.dtype,
            "backend": backend,
        },
    )


def _calling(
    call: Callable[[Picture], Picture],
    case: ImageCase,
    loaded: tuple[Parts, PeakMemory],
    ran: tuple[str, str],
    begun: Begun,
    *,
    depth: int = 1,
) -> CallSubject:
    """ran: name and backend."""
    parts, memory = loaded
    pictures = cycle(frame.image for frame in moving_frames(_PICTURES, *parts.model.size_px))
    wrong = ran[0].startswith("streamdiffusion") and parts.networks.prediction_type != "epsilon"
    about = About(
        subject=ran[0],
        model=case.model,
        weights="random" if case.random else "bundled",
        size_px=parts.model.size_px,
        task="image to image",
        steps=case.steps,
        dtype=parts.model.dtype,
        backend=ran[1],
        counted=HOST_TO_HOST,
        gap_of="frames",
        latency=PUSH_TO_PICTURE,
        notes=(_NO_EPSILON,) if wrong else (),
    )
    calls = Calls(call=lambda: call(next(pictures)), depth=depth, warm_up_s=case.warm_up_s)
    return CallSubject(calls, about, memory, parts.model.device, begun)


def _camera(width: int, height: int) -> Iterator[Frame]:
    return endless_camera([frame.image for frame in moving_frames(_PICTURES, width, height)])
