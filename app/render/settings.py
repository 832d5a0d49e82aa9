"""Owns the settings of a render as text: what a resumed run must share with the interrupted one.

Writes nothing.
"""

from __future__ import annotations

import av

from app.media.containers import Animation, Container, FileKind
from pipelines.core.prompts import WeightedPrompt
from pipelines.core.types import StreamInfo

from .record import fingerprint
from .request import RenderRequest


def requested_settings(request: RenderRequest, kind: FileKind | None) -> dict[str, str]:
    """The request by command-line names; a resumed run must have the same."""
    rate = str(request.frame_rate or "")
    story = request.timeline
    given = {name: _readable(value) for name, value in request.control.changes().items()}
    return {
        "input": fingerprint(request.source) if request.source is not None else "none (prompt-only)",
        "number of frames": str(request.frames or ""),
        "seconds": str(request.seconds or ""),
        "first picture": fingerprint(request.first_picture) if request.first_picture is not None else "none",
        "timeline": fingerprint(story) if story is not None else "none",
        "frame rate": rate,
        "aspect": request.aspect.value,
        "output size": _readable(request.out_size),
        "encoder": _encoder(kind),
        **_loader_settings(request),
        "set of controls": ", ".join(sorted(given)),
        **given,
    }


def _encoder(kind: FileKind | None) -> str:
    match kind:
        case None:
            return "png"
        case Animation():
            return kind.encoder
        case Container():
            return f"{kind.video_encoder} {dict(kind.video_options)}, PyAV {av.__version__}"


def _loader_settings(request: RenderRequest) -> dict[str, str]:
    """Model and loader's options, by the names of `LoaderOptions`."""
    options = request.engine
    settings: dict[str, object] = {
        "model": request.model,
        "width": options.width,
        "height": options.height,
        "frames_per_slot": options.frames_per_slot,
        "device": options.device,
        "dtype": options.dtype,
        "backend": options.backend,
        "loras": options.loras,
        "autoencoder": options.autoencoder,
        "allow_pickle": options.allow_pickle,
        "safety": options.safety,
    }
    if video := options.video.chosen():
        settings["video"] = video
    if options.step_cache:
        settings["step cache"] = options.step_cache
    if options.cache_profile:
        settings["cache profile"] = options.cache_profile
    if options.stages:
        settings["stages"] = ", ".join(options.stages)
    if options.slicing != "off":
        settings["slicing"] = options.slicing
    return {name: _readable(value) for name, value in settings.items()}


def chosen_settings(info: StreamInfo) -> dict[str, str]:
    """The engine's choices: "auto" may choose differently on another machine."""
    return {
        "engine": f"{info.model}, {info.dtype} on {info.device}, {info.backend}",
        "engine size": f"{info.width}x{info.height}",
    }


def _readable(value: object) -> str:
    match value:
        case (WeightedPrompt(), *_):
            assert isinstance(value, tuple)
            return " | ".join(f"{prompt.text}:{prompt.weight:g}" for prompt in value)
        case (int() as width, int() as height):
            return f"{width}x{height}"
    return str(value)
