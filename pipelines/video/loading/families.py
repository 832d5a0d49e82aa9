"""Owns the table of published causal video models: how each is recognised, and the preset that suits it.

Steps, shifts, windows and sinks are those of the published configurations; if a published configuration cannot stream
indefinitely, a published rule for longer streams is used instead and `notice` says so. Independent of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePath

from pipelines.core.errors import ModelError
from pipelines.video.presets import Licence, VideoPreset

SIZES: Mapping[int, str] = {1536: "1.3B", 5120: "14B"}
CONTAINERS = ("generator_ema", "generator", "state_dict", "model")
_MAX_LEVELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFamily:
    """One published kind of weights.

    hint: pattern searched for in the path of a file or folder. repository and files: where it is published; empty for a
    model that comes with Zoetrope. sizes: of `SIZES`; empty for any. containers: parts of a pickled file that may hold
    the weights, best first. signature: the exact parts of this family's file, if no other family's has them. lora: the
    adapter next to the base file that belongs to it. lora_alpha: its alpha if the file has none; 0: alpha = rank.
    notice: shown when the family is loaded.
    """

    name: str
    title: str
    hint: re.Pattern[str]
    repository: str
    files: tuple[str, ...]
    licence: Licence
    preset: VideoPreset
    sizes: tuple[str, ...] = ("1.3B",)
    containers: tuple[str, ...] = CONTAINERS
    signature: frozenset[str] = frozenset()
    lora: str = ""
    lora_alpha: float = 0.0
    notice: str = ""


def _last(pattern: str) -> re.Pattern[str]:
    """Compile a pattern that matches only in the last part of a path."""
    return re.compile(rf"(?:{pattern})[^/]*$", re.IGNORECASE)


APACHE = Licence(name="Apache-2.0")
_NON_COMMERCIAL = "CC-BY-NC-SA-4.0"
_GENERATOR = ("generator", "generator_ema", "state_dict", "model")
_TRAINED_FOR_81 = (
    "{} was trained on clips of 81 frames. Longer streams use a deep sink over a window of 21 latent frames, which "
    "needs no training (Deep Forcing)."
)
_DEEP = VideoPreset(policy="deep-sink", window_frames=21, sink_frames=10)
_DEEP_SINGLE = VideoPreset(policy="deep-sink", window_frames=21, sink_frames=10, chunk_frames=1)
_ROLLING = VideoPreset(
    steps=(1000, 800, 600, 400, 200), stream="rolling", policy="sink", window_frames=21, sink_frames=3
)
WAN_NEGATIVE_PROMPT = (
    "Bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, overall "
    "gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, "
    "poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, messy background, three "
    "legs, many people in the background, walking backwards"
)

MINI_VIDEO = VideoPreset(
    shift=3.0,
    policy="sink",
    window_frames=12,
    sink_frames=6,
    other_policies={
        "dual": {"context_frames": 3, "local_frames": 9, "theta": 0.0, "empty_context": False},
        "participative": {"sink_frames": 3, "budget_frames": 9, "recent_frames": 3},
        "heavy-hitter": {"heavy_frames": 4, "recent_frames": 5},
        "r1-kv": {"sink_frames": 3, "recent_frames": 3},
        "rebuild": {"context_frames": 9},
        "packed": {
            "sink_frames": 1,
            "mid_blocks": 2,
            "block_frames": 3,
            "recent_frames": 2,
            "pooling": (1, 2, 2),
            "pool_blocks": 16,
        },
    },
    strength=0.4,
    width=128,
    height=128,
)
"""As trained by train/video; docs/mini-video.md describes how window and sink were chosen."""

# Order matters if two hints match the same path: the more specific family comes first.
_TABLE = (
    VideoFamily(
        name="longlive",
        title="LongLive",
        hint=_last("longlive"),
        repository="Efficient-Large-Model/LongLive-1.3B",
        files=("models/longlive_base.pt", "models/lora.pt"),
        licence=Licence(name="Apache-2.0", note="CC-BY-NC-SA-4.0 before November 2025"),
        containers=_GENERATOR,
        preset=VideoPreset(policy="sink", window_frames=12, sink_frames=3),
        lora="lora.pt",
        lora_alpha=256.0,
    ),
    VideoFamily(
        name="causal-forcing-long",
        title="Causal Forcing, long video",
        hint=_last("longvideo"),
        repository="zhuhz22/Causal-Forcing",
        files=("chunkwise/longvideo.pt",),
        licence=APACHE,
        preset=replace(_ROLLING, steps=(1000, 750, 500, 250)),
    ),
    VideoFamily(
        name="rolling-forcing",
        title="Rolling Forcing",
        hint=_last("rolling[-_]?forcing"),
        repository="TencentARC/RollingForcing",
        files=("checkpoints/rolling_forcing_dmd.pt",),
        licence=Licence(
            name="RollingForcing licence",
            commercial=False,
            note="the code's licence covers the weights and allows academic purposes only, the model card says MIT",
        ),
        signature=frozenset({"generator", "generator_ema", "critic"}),
        preset=_ROLLING,
    ),
    VideoFamily(
        name="causal-forcing-1step",
        title="Causal Forcing++, frame-wise, 1 step",
        hint=_last("framewise[-_]?1[-_]?step"),
        repository="zhuhz22/Causal-Forcing",
        files=("causal-forcing++/framewise-1step.pt",),
        licence=APACHE,
        preset=VideoPreset(
            steps=(1000,), first_steps=(1000, 750, 500, 250), chunk_frames=1, policy="deep-sink", sink_frames=10
        ),
        notice=_TRAINED_FOR_81.format("Causal Forcing++"),
    ),
    VideoFamily(
        name="causal-forcing-2step",
        title="Causal Forcing++, frame-wise, 2 steps",
        hint=_last("framewise[-_]?2[-_]?step"),
        repository="zhuhz22/Causal-Forcing",
        files=("causal-forcing++/framewise-2step.pt",),
        licence=APACHE,
        preset=VideoPreset(
            steps=(1000, 500), first_steps=(1000, 750, 500, 250), chunk_frames=1, policy="deep-sink", sink_frames=10
        ),
        notice=_TRAINED_FOR_81.format("Causal Forcing++"),
    ),
    VideoFamily(
        name="causal-forcing-framewise",
        title="Causal Forcing, frame-wise",
        hint=re.compile(r"framewise[^/]*(/[^/]*)?$", re.IGNORECASE),
        repository="zhuhz22/Causal-Forcing",
        files=("framewise/causal_forcing.pt",),
        licence=APACHE,
        preset=_DEEP_SINGLE,
        notice=_TRAINED_FOR_81.format("Causal Forcing"),
    ),
    VideoFamily(
        name="causal-forcing",
        title="Causal Forcing, chunk-wise",
        hint=_last("causal[-_]?forcing|chunkwise"),
        repository="zhuhz22/Causal-Forcing",
        files=("chunkwise/causal_forcing.pt",),
        licence=APACHE,
        containers=_GENERATOR,
        preset=_DEEP,
        notice=_TRAINED_FOR_81.format("Causal Forcing"),
    ),
    VideoFamily(
        name="self-forcing",
        title="Self-Forcing",
        hint=_last("self[-_]?forcing"),
        repository="gdhe17/Self-Forcing",
        files=("checkpoints/self_forcing_dmd.pt",),
        licence=Licence(name=_NON_COMMERCIAL, commercial=False, note="as the model card says; the code is Apache-2.0"),
        preset=_DEEP,
        notice=_TRAINED_FOR_81.format("Self-Forcing"),
    ),
    VideoFamily(
        name="streamdiffusion-v2",
        title="StreamDiffusionV2",
        hint=_last("stream[-_]?diffusion[-_]?v2|wan_causal_dmd_v2v"),
        repository="jerryfeng/StreamDiffusionV2",
        files=("wan_causal_dmd_v2v/model.pt", "wan_causal_dmd_v2v_14b/model.pt"),
        licence=Licence(
            name=_NON_COMMERCIAL, commercial=False, note="its weights are CausVid's; the code is Apache-2.0"
        ),
        sizes=("1.3B", "14B"),
        containers=_GENERATOR,
        preset=VideoPreset(
            steps=(700, 500, 400, 200),
            warp=False,
            shift=8.0,
            chunk_frames=1,
            window_frames=6,
            sink_frames=3,
            policy="adaptive-sink",
            policy_options={"threshold": 0.2},
            stream="step-batch",
            clean_pass=False,
        ),
        notice="These weights turn one video into another: give a camera or a clip.",
    ),
    VideoFamily(
        name="causvid",
        title="CausVid",
        hint=_last("causvid|autoregressive_checkpoint"),
        repository="tianweiy/CausVid",
        files=("autoregressive_checkpoint/model.pt",),
        licence=Licence(name=_NON_COMMERCIAL, commercial=False),
        containers=_GENERATOR,
        preset=VideoPreset(
            steps=(1000, 757, 522), warp=False, shift=8.0, policy="window", window_frames=21, sink_frames=0
        ),
        notice="CausVid was trained on clips of 81 frames. Longer streams use a sliding window of 21 latent frames.",
    ),
    VideoFamily(
        name="krea",
        title="Krea Realtime",
        hint=_last("krea"),
        repository="krea/krea-realtime-video",
        files=("krea-realtime-video-14b.safetensors",),
        licence=Licence(name=_NON_COMMERCIAL, commercial=False),
        sizes=("14B",),
        preset=VideoPreset(
            steps=(1000, 750, 500, 250, 0),
            policy="rebuild",
            policy_options={"context_frames": 3},
            window_frames=6,
            clean_pass=False,
        ),
    ),
    VideoFamily(
        name="shotstream",
        title="ShotStream",
        hint=_last("shotstream"),
        repository="KlingTeam/ShotStream",
        files=("shotstream_merged.pt",),
        licence=APACHE,
        containers=_GENERATOR,
        preset=VideoPreset(
            steps=(1000, 740, 500, 260),
            shift=8.0,
            policy="dual",
            window_frames=27,
            sink_frames=6,
            policy_options={"context_frames": 6, "local_frames": 21, "theta": 1 / 6},
        ),
    ),
    VideoFamily(
        name="wan",
        title="Wan 2.1",
        hint=_last(r"wan[-_]?(ai|2\.?1)"),
        repository="Wan-AI/Wan2.1-T2V-1.3B",
        files=("diffusion_pytorch_model.safetensors",),
        licence=APACHE,
        sizes=("1.3B", "14B"),
        preset=VideoPreset(
            steps=tuple(range(1000, 0, -20)),
            shift=3.0,
            sampler="euler",
            guidance=5.0,
            negative_prompt=WAN_NEGATIVE_PROMPT,
            policy="window",
            chunk_frames=21,
            window_frames=21,
            clean_pass=False,
        ),
        notice=(
            "Wan 2.1 itself is not causal: each chunk is a separate clip of 81 frames, with 50 steps and guidance. "
            "Add the checkpoint of a causal family for a stream."
        ),
    ),
    VideoFamily(
        name="mini-video",
        title="mini-video",
        hint=_last("mini[-_]?video"),
        repository="",
        files=(),
        licence=APACHE,
        preset=MINI_VIDEO,
        sizes=(),
    ),
)
FAMILIES: Mapping[str, VideoFamily] = {family.name: family for family in _TABLE}


def family_named(name: str) -> VideoFamily:
    """Return the family of a name. Raises a ModelError that lists the names."""
    family = FAMILIES.get(name)
    if family is None:
        raise ModelError(f"There is no family of video models named {name!r}.", f"Use one of: {', '.join(FAMILIES)}.")
    return family


def family_of_path(path: PurePath) -> VideoFamily | None:
    """Return the family that a file's name hints at, else its folder's name, and so on upward; None without a hint."""
    parts = path.parts[-_MAX_LEVELS:]
    for last in range(len(parts), 0, -1):
        tail = "/".join(parts[:last])
        for family in _TABLE:
            if family.hint.search(tail):
                return family
    return None


def family_of_containers(containers: frozenset[str]) -> VideoFamily | None:
    """Return the only family whose published file has exactly these parts; None if several or none do."""
    found = [family for family in _TABLE if family.signature == containers and containers]
    return found[0] if len(found) == 1 else None
