"""Owns the options of a video engine, and the preset and the policy that follow from them and the model's preset.

Raises errors that name the value and the remedy. Independent of tensors and streams.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from cache.kv.plan import KVError
from cache.kv.policies import POLICIES, KVPolicy, make_policy
from pipelines.core.errors import ControlError
from pipelines.files.loader_options import check_video_counts

from .presets import VideoPreset


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOptions:
    """0, "" and -1 stand for the model's default.

    width, height: pixels. stream: a name of presets.STREAMS. policy, policy_options: of cache.kv.policies.
    chunk_frames, window_frames, sink_frames: latent frames. max_streams: streams open at once; 0: up to 4, as memory
    allows. guidance: whether streams have a second row for the negative prompt; None: if the preset needs it.
    storage: of keys and values (cache.kv.bank.STORAGES), or "auto", see `chosen_storage`. rewind_bytes: memory of a
    stream's rewind points.
    work_dtype: of latents between passes; float32 except in tests. stages: names of pipelines.stages.table.
    recache_from, recache_drift: after a cut of the prompt, compute the past's layers only from this one on, or from
    where attention has drifted further than this; 0: all of them. See `Recaching`.
    """

    width: int = 0
    height: int = 0
    stream: str = ""
    policy: str = ""
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    chunk_frames: int = 0
    window_frames: int = 0
    sink_frames: int = -1
    max_streams: int = 0
    guidance: bool | None = None
    storage: str = "auto"
    rewind_bytes: int = 2**30
    work_dtype: torch.dtype = torch.float32
    stages: tuple[str, ...] = ()
    recache_from: int = 0
    recache_drift: float = 0.0

    def __post_init__(self) -> None:
        check_video_counts(
            chunk_frames=self.chunk_frames,
            window_frames=self.window_frames,
            sink_frames=self.sink_frames,
            max_streams=self.max_streams,
            rewind_bytes=self.rewind_bytes,
        )


def chosen_preset(preset: VideoPreset, options: VideoOptions) -> VideoPreset:
    """Return the preset with the user's choices applied. Choosing another policy replaces the policy options by those
    that the preset lists for it.

    Raises ModelError if the window cannot hold the sink and one pass.
    """
    changes: dict[str, Any] = {
        name: value
        for name, value in (
            ("stream", options.stream),
            ("policy", options.policy),
            ("chunk_frames", options.chunk_frames),
            ("window_frames", options.window_frames),
        )
        if value
    }
    if options.sink_frames >= 0:
        changes["sink_frames"] = options.sink_frames
    elif options.policy == "window":
        changes["sink_frames"] = 0
    if options.policy and options.policy != preset.policy:
        changes["policy_options"] = {**preset.other_policies.get(options.policy, {}), **options.policy_options}
    elif options.policy_options:
        changes["policy_options"] = {**preset.policy_options, **options.policy_options}
    if options.stream and options.stream != preset.stream:
        changes["clean_pass"] = options.stream != "step-batch" and preset.policy != "rebuild"
    return replace(preset, **changes)


def chosen_policy(
    preset: VideoPreset, grid: tuple[int, int], policies: Mapping[str, type[KVPolicy]] = POLICIES
) -> KVPolicy:
    """Make a preset's cache policy for a grid of tokens. Raises ControlError, ModelError."""
    options = preset.cache_options(policies)
    try:
        return make_policy(preset.policy, grid=grid, policies=policies, **options)
    except KVError as error:
        raise ControlError(f"The cache policy {preset.policy!r} cannot be made: {error}.") from error


def chosen_storage(requested: str, needed: str, policy: KVPolicy, device: torch.device) -> str:
    """Return the storage of keys and values. needed: by the backend's attention; "": any.

    "auto" is the needed one; else on CUDA "rotated", the fastest, if the policy can use it in less memory; else
    "native". Raises ControlError if another than the needed one is requested, or the policy cannot use that.
    """
    if needed == "fp8" and (policy.weighs_attention or policy.compares):
        names = {kind: name for name, kind in POLICIES.items()}
        why = "compares the values of frames, which fp8 keeps without their mean"
        if policy.weighs_attention:
            why = "sums attention" if policy.accumulates else "weighs tokens by attention"
            why += ", for which fp8 scales keys"
        raise ControlError(
            f"The cache policy {names.get(type(policy), type(policy).__name__)!r} cannot run in fp8: it {why}.",
            "Use another policy, or a backend without fp8 attention: fp8-products or compiled.",
        )
    if requested == "auto":
        rotated = device.type == "cuda" and policy.keeps_distances
        return needed or ("rotated" if rotated else "native")
    if needed and requested != needed:
        raise ControlError(
            f"The backend keeps keys and values in the storage {needed!r}, not {requested!r}.", "Use auto."
        )
    return requested


def check_size(width: int, height: int, multiple: int) -> None:
    """Raise ControlError unless both sides are positive multiples of `multiple` pixels."""
    for name, value in (("width", width), ("height", height)):
        if value <= 0 or value % multiple:
            nearest = max(multiple, round(value / multiple) * multiple)
            raise ControlError(
                f"{name} cannot be {value} pixels.", f"It must be a multiple of {multiple}: try {nearest}."
            )
