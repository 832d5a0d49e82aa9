"""The control table: every control of a stream, once.

One row gives the typed attribute of `Control` and `Controls`, the command-line option, the page's widget, the JSON
schema, the OSC and MIDI name and the docs. Knows no engine and no widget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, Generic, Literal, Required, TypeAlias, TypedDict, TypeVar, Unpack, overload

from .prompts import WeightedPrompt

T = TypeVar("T")
ControlKind = Literal["float", "int", "bool", "choice", "text", "prompts"]
EngineKind = Literal["image", "video"]
Scope = Literal["stream", "engine"]
PageSection = Literal["", "stage", "Look", "Prompt changes", "Guidance", "Engine", "Video"]


class Propagation(Enum):
    """When a changed control is felt. Shown on the page and measured by a test."""

    NEXT_TICK = "next tick"  # read at every step by all slots of the stream
    NEXT_SLOT = "next slot"  # fixed at a slot's birth: glides in over the depth of the ring
    NEXT_CHUNK = "next chunk"  # video models: from the next chunk on
    REOPEN = "reopen"  # a new stream is opened (model, size)


class CompleteValues:
    """What `Controls` is to the table: it has a value for every row."""

    __slots__ = ()

    def value_of(self, name: str) -> Any:
        """The value of a control."""
        raise NotImplementedError


class PartialValues:
    """What `Control` is to the table: it has values for some rows."""

    __slots__ = ()

    def value_of(self, name: str) -> Any:
        """The value of a control, or None."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class ControlRow(Generic[T]):
    """One row: read from the class it is itself, from `Controls` its value, from `Control` its value or None.

    minimum, maximum: inclusive, for kinds float and int. choices: for kind choice. propagation: when a change is felt.
    cut_propagation: the class that holds instead while `prompt_change` is "cut" or "flush". A slot of a video model is
    a chunk. engines: the kinds of engine for which it means anything. section: where it is on the page; "stage": on the
    stage itself, "": nowhere. momentary: it asks for something once and goes back to its default by itself, so a new
    stream is not told of it. scope: whether it holds for one stream or for all of an engine.
    """

    kind: ControlKind
    default: T
    help: str
    propagation: Propagation
    cut_propagation: Propagation | None = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    engines: tuple[EngineKind, ...] = ("image", "video")
    section: PageSection = ""
    momentary: bool = False
    scope: Scope = "stream"
    name: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    @overload
    def __get__(self, instance: None, owner: type) -> ControlRow[T]: ...
    @overload
    def __get__(self, instance: CompleteValues, owner: type) -> T: ...
    @overload
    def __get__(self, instance: PartialValues, owner: type) -> T | None: ...
    def __get__(self, instance: CompleteValues | PartialValues | None, owner: type) -> ControlRow[T] | T | None:
        return self if instance is None else instance.value_of(self.name)

    def __set__(self, instance: object, value: object) -> None:
        raise AttributeError(f"{self.name} cannot be set: make a new record")


ControlSpec: TypeAlias = ControlRow[Any]


class _Columns(TypedDict, total=False):
    propagation: Required[Propagation]
    help: Required[str]
    cut_propagation: Propagation
    engines: tuple[EngineKind, ...]
    section: PageSection
    unit: str
    momentary: bool
    scope: Scope


_TICK, _SLOT, _CHUNK, _REOPEN = Propagation
_IMAGE: tuple[EngineKind, ...] = ("image",)
_VIDEO: tuple[EngineKind, ...] = ("video",)


def _float(default: float, low: float, high: float, **columns: Unpack[_Columns]) -> ControlRow[float]:
    return ControlRow(kind="float", default=default, minimum=low, maximum=high, **columns)


def _int(default: int, low: int, high: int, **columns: Unpack[_Columns]) -> ControlRow[int]:
    return ControlRow(kind="int", default=default, minimum=low, maximum=high, **columns)


def _bool(default: bool, **columns: Unpack[_Columns]) -> ControlRow[bool]:
    return ControlRow(kind="bool", default=default, **columns)


def _choice(default: str, choices: tuple[str, ...], **columns: Unpack[_Columns]) -> ControlRow[str]:
    return ControlRow(kind="choice", default=default, choices=choices, **columns)


def _text(default: str, **columns: Unpack[_Columns]) -> ControlRow[str]:
    return ControlRow(kind="text", default=default, **columns)


def _prompts(**columns: Unpack[_Columns]) -> ControlRow[tuple[WeightedPrompt, ...]]:
    return ControlRow(kind="prompts", default=(), **columns)


def _action(at_1: str) -> ControlRow[float]:
    """One axis of an action. at_1: what its largest value does."""
    text = f"{at_1}, of a model that takes actions; -1 the other way, 0 nothing; holds until it is changed."
    return _float(0.0, -1.0, 1.0, propagation=_CHUNK, engines=_VIDEO, section="stage", help=text)


class ControlTable:
    """The rows, in display order."""

    __slots__ = ()
    # fmt: off
    prompt = _prompts(
        propagation=_SLOT, cut_propagation=_TICK, section="stage",
        help="What to show. Several prompts with weights are blended: 'a cat:2 | a robot:1'.",
    )
    prompt_change = _choice(
        "glide", ("glide", "cut", "flush"), propagation=_TICK, section="Prompt changes",
        help="glide: slots in flight keep the prompt they were born with; cut: all take the new one at the next "
        "tick. A video's past is seen with the new prompt after a cut; flush forgets it but for sink and last "
        "frame.",
    )
    prompt_blend = _choice(
        "linear", ("linear", "slerp"), propagation=_SLOT, section="Prompt changes",
        help="How weighted prompts and transitions are mixed: straight line or along the sphere.",
    )
    transition_frames = _int(
        0, 0, 1000, propagation=_SLOT, section="Prompt changes", unit="frames",
        help="A prompt change moves from the old to the new prompt over this many frames.",
    )
    negative_prompt = _text(
        "", propagation=_SLOT, cut_propagation=_TICK, section="Prompt changes",
        help="What to steer away from; used by guidance modes full and onetime.",
    )
    guidance_mode = _choice(
        "none", ("none", "full", "self", "onetime"), propagation=_SLOT, engines=_IMAGE, section="Guidance",
        help="Classifier-free guidance: none, full (two evaluations a step), self-negative or onetime-negative "
        "(RCFG).",
    )
    guidance_scale = _float(
        1.0, 0.0, 30.0, propagation=_TICK, section="Guidance",
        help="Strength of guidance; 1 and below turn it off.",
    )
    guidance_delta = _float(
        1.0, 0.0, 2.0, propagation=_TICK, engines=_IMAGE, section="Guidance",
        help="Scale of the virtual negative noise in guidance modes self and onetime.",
    )
    step_function = _choice(
        "lcm", ("lcm", "tcd", "turbo"), propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="How a step goes from one noise level to the next: LCM, deterministic TCD, turbo (plain x0, re-noised).",
    )
    strength = _float(
        0.5, 0.02, 1.0, propagation=_SLOT, section="Look",
        help="How far an input picture is noised before it is redrawn: 0.02 barely, 1 wholly.",
    )
    steps = _int(
        2, 1, 8, propagation=_SLOT, engines=_IMAGE, section="Look", unit="steps",
        help="Denoising steps of a slot.",
    )
    depth = _int(
        8, 1, 8, propagation=_SLOT, engines=_IMAGE, section="Engine", unit="slots",
        help="Most slots of this stream in flight at once; fewer means a cheaper tick and fewer frames a tick.",
    )
    seed = _int(
        2, 0, 2**32 - 1, propagation=_SLOT, section="Look",
        help="Seed of the noise.",
    )
    seed_lock = _bool(
        True, propagation=_SLOT, section="Look",
        help="On: every slot uses the same noise, so that a still picture stays still. Off: each slot draws its own.",
    )
    noise_walk_deg = _float(
        2.0, 0.0, 90.0, propagation=_SLOT, engines=_IMAGE, section="Look", unit="degrees a frame",
        help="How far the noise of a prompt-only stream turns from frame to frame; 0 holds the picture.",
    )
    lora_scale = _float(
        1.0, -2.0, 2.0, propagation=_TICK, engines=_IMAGE, section="Engine", scope="engine",
        help="Scale of the loaded LoRA; one value for the engine, the latest change wins.",
    )
    similarity_filter = _bool(
        False, propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="Skip input frames that look like the last one (stochastic, seeded).",
    )
    similarity_threshold = _float(
        0.98, 0.0, 1.0, propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="Cosine similarity from which frames begin to be skipped.",
    )
    similarity_max_skips = _int(
        10, 0, 1000, propagation=_SLOT, engines=_IMAGE, section="Engine", unit="frames",
        help="Most consecutive skips.",
    )
    paused = _bool(
        False, propagation=_TICK, engines=_VIDEO, section="Video",
        help="Stop computing and taking frames; what is in flight waits.",
    )
    scene_cut = _bool(
        False, propagation=_CHUNK, engines=_VIDEO, section="Video", momentary=True,
        help="The next chunk begins another scene; goes back to off by itself.",
    )
    rewind_to = _int(
        -1, -1, 10**9, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="chunk", momentary=True,
        help="Go back to where this chunk began and go on from there; -1: nothing; goes back to -1 by itself.",
    )
    chunk_frames = _int(
        0, 0, 64, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="latents",
        help="Latent frames (of 4 frames) that are denoised together: fewer answer sooner; 0: the model's own.",
    )
    first_chunk_frames = _int(
        0, 0, 64, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="latents",
        help="The same for a stream's first chunk, so that something is seen sooner; 0: like the others.",
    )
    chunk_steps = _int(
        0, 0, 100, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="steps",
        help="Denoising steps of a chunk; 0: the model's own.",
    )
    input_use = _choice(
        "redraw", ("redraw", "first-frame"), propagation=_CHUNK, engines=_VIDEO, section="Video",
        help="redraw: input frames become a new video; first-frame: a picture begins the video, the prompt goes on.",
    )
    noise_control = _bool(
        True, propagation=_CHUNK, engines=_VIDEO, section="Video",
        help="Less noise on input chunks that move much (StreamDiffusionV2), so that movement is kept.",
    )
    camera_x = _action("1 moves the camera right")
    camera_y = _action("1 moves the camera up")
    camera_zoom = _action("1 zooms in")
    push_x = _action("1 pushes the subject right")
    push_y = _action("1 pushes the subject up")
    model = _text(
        "mini-image", propagation=_REOPEN,
        help="Bundled name, local folder or hub id.",
    )
    width = _int(
        0, 0, 4096, propagation=_REOPEN, unit="px",
        help="Picture width; 0: the model's own.",
    )
    height = _int(
        0, 0, 4096, propagation=_REOPEN, unit="px",
        help="Picture height; 0: the model's own.",
    )
    frames_per_slot = _int(
        1, 1, 16, propagation=_REOPEN, engines=_IMAGE, unit="frames",
        help="Consecutive frames that are denoised together (F).",
    )
    kv_policy = _text(
        "", propagation=_REOPEN, engines=_VIDEO,
        help="What a video model remembers: full, window, sink, deep-sink, ...; empty: what suits it.",
    )
    window_frames = _int(
        0, 0, 1024, propagation=_REOPEN, engines=_VIDEO, unit="latents",
        help="Latent frames that are attended, sink and chunk included; 0: what suits the model.",
    )
    sink_frames = _int(
        -1, -1, 1024, propagation=_REOPEN, engines=_VIDEO, unit="latents",
        help="First latent frames that are never forgotten; -1: what suits the model.",
    )
    # fmt: on


CONTROLS: Mapping[str, ControlSpec] = MappingProxyType(
    {name: spec for name, spec in vars(ControlTable).items() if isinstance(spec, ControlRow)}
)
"""By name, in display order."""

STREAM_CONTROLS = tuple(name for name, spec in CONTROLS.items() if spec.propagation is not Propagation.REOPEN)
"""The controls that a stream takes while it runs: all but those that choose the engine."""

ENGINE_CONTROLS = tuple(name for name, spec in CONTROLS.items() if spec.scope == "engine")
"""Those that hold for all streams of an engine; the latest change wins."""
