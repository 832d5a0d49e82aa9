"""The control table: every knob of a stream, once.

The command line, the page, the JSON schema, OSC, MIDI and the docs derive from it. Knows no engine and no widget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Literal

ControlKind = Literal["float", "int", "bool", "choice", "text", "prompts"]
EngineKind = Literal["image", "video"]


class Propagation(Enum):
    """When a changed control is felt. Shown on the page and measured by a test."""

    NEXT_TICK = "next tick"  # read at every step by all slots of the stream
    NEXT_SLOT = "next slot"  # fixed at a slot's birth: glides in over the depth of the ring
    NEXT_CHUNK = "next chunk"  # video models: from the next chunk on
    REOPEN = "reopen"  # a new stream is opened (model, size)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlSpec:
    """One row of the table.

    minimum, maximum: inclusive, for kinds float and int. choices: for kind choice.
    propagation: when a change is felt. cut_propagation: the class that holds instead while `prompt_change` is "cut" or
    "flush". A slot of a video model is a chunk. engines: the kinds of engine for which it means anything. momentary: it
    asks for something once and goes back to its default by itself, so a new stream is not told of it.
    """

    name: str
    kind: ControlKind
    default: object
    help: str
    propagation: Propagation
    cut_propagation: Propagation | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    engines: tuple[EngineKind, ...] = ("image", "video")
    momentary: bool = False


_TICK, _SLOT, _CHUNK, _REOPEN = Propagation
_IMAGE: tuple[EngineKind, ...] = ("image",)
_VIDEO: tuple[EngineKind, ...] = ("video",)


def _action(name: str, at_1: str) -> ControlSpec:
    """One axis of an action. at_1: what its largest value does."""
    return ControlSpec(
        name=name,
        kind="float",
        default=0.0,
        minimum=-1.0,
        maximum=1.0,
        propagation=_CHUNK,
        engines=_VIDEO,
        help=f"{at_1}, of a model that takes actions; -1 the other way, 0 nothing; holds until it is changed.",
    )


_TABLE = (
    ControlSpec(
        name="prompt",
        kind="prompts",
        default=(),
        propagation=_SLOT,
        cut_propagation=_TICK,
        help="What to show. Several prompts with weights are blended: 'a cat:2 | a robot:1'.",
    ),
    ControlSpec(
        name="negative_prompt",
        kind="text",
        default="",
        propagation=_SLOT,
        cut_propagation=_TICK,
        help="What to steer away from; used by guidance modes full and onetime.",
    ),
    ControlSpec(
        name="prompt_change",
        kind="choice",
        default="glide",
        choices=("glide", "cut", "flush"),
        propagation=_TICK,
        help="glide: slots in flight keep the prompt they were born with; cut: all take the new one at the next tick. "
        "A video's past is seen with the new prompt after a cut; flush forgets it but for sink and last frame.",
    ),
    ControlSpec(
        name="prompt_blend",
        kind="choice",
        default="linear",
        choices=("linear", "slerp"),
        propagation=_SLOT,
        help="How weighted prompts and transitions are mixed: straight line or along the sphere.",
    ),
    ControlSpec(
        name="transition_frames",
        kind="int",
        default=0,
        minimum=0,
        maximum=1000,
        unit="frames",
        propagation=_SLOT,
        help="A prompt change moves from the old to the new prompt over this many frames.",
    ),
    ControlSpec(
        name="guidance_mode",
        kind="choice",
        engines=_IMAGE,
        default="none",
        choices=("none", "full", "self", "onetime"),
        propagation=_SLOT,
        help="Classifier-free guidance: none, full (two evaluations a step), self-negative or onetime-negative (RCFG).",
    ),
    ControlSpec(
        name="guidance_scale",
        kind="float",
        default=1.0,
        minimum=0.0,
        maximum=30.0,
        propagation=_TICK,
        help="Strength of guidance; 1 and below turn it off.",
    ),
    ControlSpec(
        name="guidance_delta",
        kind="float",
        engines=_IMAGE,
        default=1.0,
        minimum=0.0,
        maximum=2.0,
        propagation=_TICK,
        help="Scale of the virtual negative noise in guidance modes self and onetime.",
    ),
    ControlSpec(
        name="step_function",
        kind="choice",
        engines=_IMAGE,
        default="lcm",
        choices=("lcm", "tcd", "turbo"),
        propagation=_SLOT,
        help="How a step goes from one noise level to the next: LCM, deterministic TCD, turbo (plain x0, re-noised).",
    ),
    ControlSpec(
        name="strength",
        kind="float",
        default=0.5,
        minimum=0.02,
        maximum=1.0,
        propagation=_SLOT,
        help="How far an input picture is noised before it is redrawn: 0.02 barely, 1 wholly.",
    ),
    ControlSpec(
        name="steps",
        kind="int",
        engines=_IMAGE,
        default=2,
        minimum=1,
        maximum=8,
        unit="steps",
        propagation=_SLOT,
        help="Denoising steps of a slot.",
    ),
    ControlSpec(
        name="depth",
        kind="int",
        engines=_IMAGE,
        default=8,
        minimum=1,
        maximum=8,
        unit="slots",
        propagation=_SLOT,
        help="Most slots of this stream in flight at once; fewer means a cheaper tick and fewer frames a tick.",
    ),
    ControlSpec(
        name="seed", kind="int", default=2, minimum=0, maximum=2**32 - 1, propagation=_SLOT, help="Seed of the noise."
    ),
    ControlSpec(
        name="seed_lock",
        kind="bool",
        default=True,
        propagation=_SLOT,
        help="On: every slot uses the same noise, so that a still picture stays still. Off: each slot draws its own.",
    ),
    ControlSpec(
        name="noise_walk_deg",
        kind="float",
        engines=_IMAGE,
        default=2.0,
        minimum=0.0,
        maximum=90.0,
        unit="degrees a frame",
        propagation=_SLOT,
        help="How far the noise of a prompt-only stream turns from frame to frame; 0 holds the picture.",
    ),
    ControlSpec(
        name="lora_scale",
        kind="float",
        engines=_IMAGE,
        default=1.0,
        minimum=-2.0,
        maximum=2.0,
        propagation=_TICK,
        help="Scale of the loaded LoRA; one value for the engine, the latest change wins.",
    ),
    ControlSpec(
        name="similarity_filter",
        kind="bool",
        engines=_IMAGE,
        default=False,
        propagation=_SLOT,
        help="Skip input frames that look like the last one (stochastic, seeded).",
    ),
    ControlSpec(
        name="similarity_threshold",
        kind="float",
        engines=_IMAGE,
        default=0.98,
        minimum=0.0,
        maximum=1.0,
        propagation=_SLOT,
        help="Cosine similarity from which frames begin to be skipped.",
    ),
    ControlSpec(
        name="similarity_max_skips",
        kind="int",
        engines=_IMAGE,
        default=10,
        minimum=0,
        maximum=1000,
        unit="frames",
        propagation=_SLOT,
        help="Most consecutive skips.",
    ),
    ControlSpec(
        name="chunk_frames",
        kind="int",
        default=0,
        minimum=0,
        maximum=64,
        unit="latents",
        propagation=_CHUNK,
        engines=_VIDEO,
        help="Latent frames (of 4 frames) that are denoised together: fewer answer sooner; 0: the model's own.",
    ),
    ControlSpec(
        name="first_chunk_frames",
        kind="int",
        default=0,
        minimum=0,
        maximum=64,
        unit="latents",
        propagation=_CHUNK,
        engines=_VIDEO,
        help="The same for a stream's first chunk, so that something is seen sooner; 0: like the others.",
    ),
    ControlSpec(
        name="chunk_steps",
        kind="int",
        default=0,
        minimum=0,
        maximum=100,
        unit="steps",
        propagation=_CHUNK,
        engines=_VIDEO,
        help="Denoising steps of a chunk; 0: the model's own.",
    ),
    ControlSpec(
        name="noise_control",
        kind="bool",
        default=True,
        propagation=_CHUNK,
        engines=_VIDEO,
        help="Less noise on input chunks that move much (StreamDiffusionV2), so that movement is kept.",
    ),
    ControlSpec(
        name="input_use",
        kind="choice",
        default="redraw",
        choices=("redraw", "first-frame"),
        propagation=_CHUNK,
        engines=_VIDEO,
        help="redraw: input frames become a new video; first-frame: a picture begins the video, the prompt goes on.",
    ),
    ControlSpec(
        name="scene_cut",
        kind="bool",
        default=False,
        propagation=_CHUNK,
        engines=_VIDEO,
        momentary=True,
        help="The next chunk begins another scene; goes back to off by itself.",
    ),
    ControlSpec(
        name="rewind_to",
        kind="int",
        default=-1,
        minimum=-1,
        maximum=10**9,
        unit="chunk",
        propagation=_CHUNK,
        engines=_VIDEO,
        momentary=True,
        help="Go back to where this chunk began and go on from there; -1: nothing; goes back to -1 by itself.",
    ),
    _action("camera_x", "1 moves the camera right"),
    _action("camera_y", "1 moves the camera up"),
    _action("camera_zoom", "1 zooms in"),
    _action("push_x", "1 pushes the subject right"),
    _action("push_y", "1 pushes the subject up"),
    ControlSpec(
        name="paused",
        kind="bool",
        default=False,
        propagation=_TICK,
        engines=_VIDEO,
        help="Stop computing and taking frames; what is in flight waits.",
    ),
    ControlSpec(
        name="model",
        kind="text",
        default="mini-image",
        propagation=_REOPEN,
        help="Bundled name, local folder or hub id.",
    ),
    ControlSpec(
        name="width",
        kind="int",
        default=0,
        minimum=0,
        maximum=4096,
        unit="px",
        propagation=_REOPEN,
        help="Picture width; 0: the model's own.",
    ),
    ControlSpec(
        name="height",
        kind="int",
        default=0,
        minimum=0,
        maximum=4096,
        unit="px",
        propagation=_REOPEN,
        help="Picture height; 0: the model's own.",
    ),
    ControlSpec(
        name="frames_per_slot",
        kind="int",
        engines=_IMAGE,
        default=1,
        minimum=1,
        maximum=16,
        unit="frames",
        propagation=_REOPEN,
        help="Consecutive frames that are denoised together (F).",
    ),
    ControlSpec(
        name="kv_policy",
        kind="text",
        default="",
        propagation=_REOPEN,
        engines=_VIDEO,
        help="What a video model remembers: full, window, sink, deep-sink, ...; empty: what suits it.",
    ),
    ControlSpec(
        name="window_frames",
        kind="int",
        default=0,
        minimum=0,
        maximum=1024,
        unit="latents",
        propagation=_REOPEN,
        engines=_VIDEO,
        help="Latent frames that are attended, sink and chunk included; 0: what suits the model.",
    ),
    ControlSpec(
        name="sink_frames",
        kind="int",
        default=-1,
        minimum=-1,
        maximum=1024,
        unit="latents",
        propagation=_REOPEN,
        engines=_VIDEO,
        help="First latent frames that are never forgotten; -1: what suits the model.",
    ),
)

CONTROLS: Mapping[str, ControlSpec] = MappingProxyType({spec.name: spec for spec in _TABLE})
"""By name, in display order."""

STREAM_CONTROLS = tuple(name for name, spec in CONTROLS.items() if spec.propagation is not Propagation.REOPEN)
"""The controls that a stream takes while it runs: all but those that choose the engine."""
