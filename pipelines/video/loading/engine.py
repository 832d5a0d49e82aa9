"""Owns how a video engine is made from a model's name and a user's options: which are for loading, which for running.

Heavy libraries are imported only when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cache.kv.policies import POLICIES, KVPolicy
from pipelines.conditioning import CONDITIONERS
from pipelines.conditioning.base import ConditionerFactory
from pipelines.core.contracts import Notify
from pipelines.core.errors import ControlError, InputError
from pipelines.core.tick_log import TickLog
from pipelines.files.loader_options import LoaderOptions
from pipelines.video.engine import VideoEngine
from pipelines.video.model import MakeVideoRuntime
from pipelines.video.options import VideoOptions
from pipelines.video.runtime import plain_runtime

from .load import VideoLoadOptions, load_video_model


def load_video_engine(
    model: str,
    options: LoaderOptions,
    *,
    make_runtime: MakeVideoRuntime = plain_runtime,
    conditioners: Sequence[ConditionerFactory] = CONDITIONERS,
    policies: Mapping[str, type[KVPolicy]] = POLICIES,
    tick_log: TickLog | None = None,
    notice: Notify,
) -> VideoEngine:
    """Load a video model, see `source.resolve_video`, and make an engine for it.

    make_runtime: of a backend. Raises InputError, ControlError, and ModelError and its subclasses. The types and ranges
    of all options are checked before anything is loaded.
    """
    if options.frames_per_slot != 1:
        raise ControlError(
            f"frames_per_slot cannot be {options.frames_per_slot} for a video model.",
            "Use chunk_frames, counted in latent frames of 4 frames each.",
        )
    if options.step_cache:
        raise InputError("Step caches are for image models.", "Omit step_cache.")
    if options.cache_profile:
        raise InputError("Cache profiles are for image models.", "Omit --cache-profile.")
    running = running_options(options)
    loaded = load_video_model(model, loading_options(options, notice), make_runtime)
    return VideoEngine(loaded, running, tick_log=tick_log, conditioners=conditioners, policies=policies)


def loading_options(options: LoaderOptions, notice: Notify) -> VideoLoadOptions:
    """Return the options for loading."""
    return VideoLoadOptions(
        device=options.device,
        dtype=options.dtype,
        family=options.video.family,
        base=options.video.base,
        autoencoder=options.autoencoder,
        loras=options.loras,
        text_encoder=options.video.text_encoder,
        attention=options.video.attention,
        notice=notice,
    )


def running_options(options: LoaderOptions) -> VideoOptions:
    """Return the options of the engine."""
    video = options.video
    return VideoOptions(
        width=options.width,
        height=options.height,
        stream=video.stream,
        policy=video.kv_policy,
        policy_options=video.policy_options,
        chunk_frames=video.chunk_frames,
        window_frames=video.window_frames,
        sink_frames=video.sink_frames,
        max_streams=video.max_streams,
        guidance=video.guidance,
        storage=video.storage,
        rewind_bytes=video.rewind_bytes,
        stages=options.stages,
    )
