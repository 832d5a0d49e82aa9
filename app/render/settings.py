"""Owns the settings of a render in words: what a resumed run must share with the one that was interrupted.

Knows no frames and writes nothing.
"""

from __future__ import annotations

import av

from app.media.containers import Container
from pipelines.core.prompts import WeightedPrompt
from pipelines.core.types import StreamInfo

from .record import fingerprint
from .request import RenderRequest


def asked_settings(request: RenderRequest, kind: Container | None) -> dict[str, str]:
    """What was asked for, by the names of the command line; a resumed run must ask for the same."""
    rate = str(request.frame_rate or "")
    story = request.timeline
    encoder = "png" if kind is None else f"{kind.video_encoder} {dict(kind.video_options)}, PyAV {av.__version__}"
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
        "encoder": encoder,
        **_loader_settings(request),
        "set of controls": ", ".join(sorted(given)),
        **given,
    }


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
    if options.stages:
        settings["stages"] = ", ".join(options.stages)
    return {name: _readable(value) for name, value in settings.items()}


def chosen_settings(info: StreamInfo) -> dict[str, str]:
    """What the engine chose, which "auto" may choose otherwise on another machine."""
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
