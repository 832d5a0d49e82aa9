"""The control table: every control of a stream, once.

One row gives the typed attribute of `Control` and `Controls`, the command-line option, the page's widget, the JSON
schema, the OSC and MIDI name and the docs. Independent of engines and widgets.
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
    """When a changed control takes effect. Shown on the page and measured by a test."""

    NEXT_TICK = "next tick"  # read at every step by all slots of the stream
    NEXT_SLOT = "next slot"  # fixed when a slot is admitted: slots in flight keep the old value
    NEXT_CHUNK = "next chunk"  # video models: from the next chunk on
    REOPEN = "reopen"  # a new stream is opened (model, size)


class CompleteValues:
    """Base of `Controls` as the rows see it: there is a value for every row."""

    __slots__ = ()

    def value_of(self, name: str) -> Any:
        """Return the value of a control."""
        raise NotImplementedError


class PartialValues:
    """Base of `Control` as the rows see it: there are values for some rows."""

    __slots__ = ()

    def value_of(self, name: str) -> Any:
        """Return the value of a control, or None if it is not set."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, kw_only=True)
class ControlRow(Generic[T]):
    """One row, a descriptor: a class gives the row itself, `Controls` its value, `Control` its value or None.

    minimum, maximum: inclusive, for kinds float and int; for kind prompts, of each weight. slider_maximum: where
    sliders and faders end, if the maximum is more than a live stream needs. choices: for kind choice. propagation: when
    a change takes effect (a slot of a video model is a chunk). cut_propagation: the class that applies instead while
    `prompt_change` is "cut" or "flush". engines: the kinds of engine that it applies to. section: where it is on the
    page; "stage": on the stage itself, "": nowhere. momentary: it requests something once and resets itself to its
    default, so it is not passed on to a new stream. scope: whether it applies to one stream or to all streams of an
    engine.
    """

    kind: ControlKind
    default: T
    help: str
    propagation: Propagation
    cut_propagation: Propagation | None = None
    minimum: float | None = None
    maximum: float | None = None
    slider_maximum: float | None = None
    choices: tuple[str, ...] = ()
    unit: str = ""
    engines: tuple[EngineKind, ...] = ("image", "video")
    section: PageSection = ""
    momentary: bool = False
    scope: Scope = "stream"
    name: str = ""

    @property
    def slider_end(self) -> float | None:
        """Where sliders and faders end."""
        return self.maximum if self.slider_maximum is None else self.slider_maximum

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
        raise AttributeError(f"{self.name} cannot be set: create a new Control or Controls")


ControlSpec: TypeAlias = ControlRow[Any]


class _Columns(TypedDict, total=False):
    propagation: Required[Propagation]
    help: Required[str]
    cut_propagation: Propagation
    engines: tuple[EngineKind, ...]
    section: PageSection
    slider_maximum: float
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


def _prompts(low: float, high: float, **columns: Unpack[_Columns]) -> ControlRow[tuple[WeightedPrompt, ...]]:
    """low, high: of each weight."""
    return ControlRow(kind="prompts", default=(), minimum=low, maximum=high, **columns)


def _action(at_1: str) -> ControlRow[float]:
    """One axis of an action. at_1: the effect of its maximum, 1."""
    text = f"{at_1}, -1 does the opposite, 0 does nothing; holds until changed. For models that take actions."
    return _float(0.0, -1.0, 1.0, propagation=_CHUNK, engines=_VIDEO, section="stage", help=text)


class ControlTable:
    """The rows, in display order."""

    __slots__ = ()
    # fmt: off
    prompt = _prompts(
        0.0001, 10_000.0, propagation=_SLOT, cut_propagation=_TICK, section="stage",
        help="What to show. Several weighted prompts are blended: 'a cat:2 | a robot:1'.",
    )
    prompt_change = _choice(
        "glide", ("glide", "cut", "flush"), propagation=_TICK, section="Prompt changes",
        help="glide: slots in flight keep the prompt they started with; cut: all take the new one at the next tick. "
        "After a cut, a video's past is reinterpreted with the new prompt; flush forgets the past except for the sink "
        "and the last frame.",
    )
    prompt_blend = _choice(
        "linear", ("linear", "slerp"), propagation=_SLOT, section="Prompt changes",
        help="How weighted prompts and transitions are interpolated: linearly or spherically.",
    )
    transition_frames = _int(
        0, 0, 1000, propagation=_SLOT, section="Prompt changes", unit="frames",
        help="A prompt change moves from the old to the new prompt over this many frames.",
    )
    negative_prompt = _text(
        "", propagation=_SLOT, cut_propagation=_TICK, section="Prompt changes",
        help="What to steer away from; used by the guidance modes full and onetime.",
    )
    guidance_mode = _choice(
        "none", ("none", "full", "self", "onetime"), propagation=_SLOT, engines=_IMAGE, section="Guidance",
        help="Classifier-free guidance: none, full (two evaluations per step), self-negative or onetime-negative "
        "(RCFG).",
    )
    guidance_scale = _float(
        1.0, 0.0, 30.0, propagation=_TICK, section="Guidance",
        help="Strength of guidance; 1 or less turns it off.",
    )
    guidance_delta = _float(
        1.0, 0.0, 2.0, propagation=_TICK, engines=_IMAGE, section="Guidance",
        help="Scale of the virtual negative noise in the guidance modes self and onetime.",
    )
    step_function = _choice(
        "lcm", ("lcm", "tcd", "turbo", "ddim", "dpmpp"), propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="How a step gets from one noise level to the next: LCM, deterministic TCD, turbo (plain x0, re-noised), "
        "each in at most 8 steps; DDIM and DPM-Solver++ for renders of many steps.",
    )
    strength = _float(
        0.5, 0.02, 1.0, propagation=_SLOT, section="Look",
        help="How much noise an input picture gets before it is redrawn: 0.02 hardly any, 1 replaces it by noise.",
    )
    steps = _int(
        2, 1, 50, slider_maximum=8, propagation=_SLOT, engines=_IMAGE, section="Look", unit="steps",
        help="Denoising steps per slot; more than 8 with the step functions ddim and dpmpp.",
    )
    depth = _int(
        8, 1, 8, propagation=_SLOT, engines=_IMAGE, section="Engine", unit="slots",
        help="Maximum slots of this stream in flight; fewer make a tick cheaper but finish fewer frames per tick.",
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
        2.0, 0.0, 90.0, propagation=_SLOT, engines=_IMAGE, section="Look", unit="degrees per frame",
        help="How far the noise of a prompt-only stream rotates from frame to frame; 0 holds the picture still.",
    )
    lora_scale = _float(
        1.0, -2.0, 2.0, propagation=_TICK, engines=_IMAGE, section="Engine", scope="engine",
        help="Scale of the loaded LoRA; one value for the whole engine, the latest change wins.",
    )
    bank = _bool(
        False, propagation=_SLOT, engines=_IMAGE, section="Look",
        help="Let frames attend to features of earlier ones, for less flicker; frames take longer (StreamV2V).",
    )
    bank_strength = _float(
        0.8, 0.0, 1.0, propagation=_SLOT, engines=_IMAGE, section="Look",
        help="How far features that hardly differ from those in the bank are replaced by them.",
    )
    reuse = _choice(
        "off", ("off", "exact", "balanced", "fastest"), propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="What frames take over from those before them. exact: all of it where the input repeats; balanced and "
        "fastest: also what does not move, at a small cost in quality.",
    )
    renew = _bool(
        False, propagation=_SLOT, engines=_IMAGE, section="Engine", momentary=True,
        help="Compute the next frame as a whole, whatever could be reused; turns itself off again.",
    )
    similarity_filter = _bool(
        False, propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="Skip input frames that look like the last one (stochastic, seeded).",
    )
    similarity_threshold = _float(
        0.98, 0.0, 1.0, propagation=_SLOT, engines=_IMAGE, section="Engine",
        help="Cosine similarity above which frames may be skipped.",
    )
    similarity_max_skips = _int(
        10, 0, 1000, propagation=_SLOT, engines=_IMAGE, section="Engine", unit="frames",
        help="Maximum number of consecutive skips.",
    )
    paused = _bool(
        False, propagation=_TICK, engines=_VIDEO, section="Video",
        help="Stop computing and accepting frames; what is in flight waits.",
    )
    scene_cut = _bool(
        False, propagation=_CHUNK, engines=_VIDEO, section="Video", momentary=True,
        help="Start a new scene with the next chunk; turns itself off again.",
    )
    rewind_to = _int(
        -1, -1, 10**9, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="chunk", momentary=True,
        help="Rewind to the start of this chunk and continue from there; -1: do not rewind; resets itself to -1.",
    )
    chunk_frames = _int(
        0, 0, 64, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="latent frames",
        help="Latent frames (4 frames each) that are denoised together; fewer respond sooner; 0: the model's default.",
    )
    first_chunk_frames = _int(
        0, 0, 64, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="latent frames",
        help="The same for a stream's first chunk, so that the first frames appear sooner; 0: like the others.",
    )
    chunk_steps = _int(
        0, 0, 100, propagation=_CHUNK, engines=_VIDEO, section="Video", unit="steps",
        help="Denoising steps per chunk; 0: the model's default.",
    )
    input_use = _choice(
        "redraw", ("redraw", "first-frame"), propagation=_CHUNK, engines=_VIDEO, section="Video",
        help="redraw: input frames are redrawn; first-frame: the video starts from a picture and follows the prompt.",
    )
    noise_control = _bool(
        True, propagation=_CHUNK, engines=_VIDEO, section="Video",
        help="Add less noise to input chunks with much motion, so that the motion is kept (StreamDiffusionV2).",
    )
    camera_x = _action("1 moves the camera right")
    camera_y = _action("1 moves the camera up")
    camera_zoom = _action("1 zooms in")
    push_x = _action("1 pushes the subject right")
    push_y = _action("1 pushes the subject up")
    model = _text(
        "mini-image", propagation=_REOPEN,
        help="Bundled name, local folder or hub id of the model.",
    )
    width = _int(
        0, 0, 4096, propagation=_REOPEN, unit="pixels",
        help="Picture width; 0: the model's native width.",
    )
    height = _int(
        0, 0, 4096, propagation=_REOPEN, unit="pixels",
        help="Picture height; 0: the model's native height.",
    )
    frames_per_slot = _int(
        1, 1, 16, propagation=_REOPEN, engines=_IMAGE, unit="frames",
        help="Consecutive frames that are denoised together (F).",
    )
    kv_policy = _text(
        "", propagation=_REOPEN, engines=_VIDEO,
        help="What a video model remembers: full, window, sink, deep-sink, ...; empty: the model's default.",
    )
    window_frames = _int(
        0, 0, 1024, propagation=_REOPEN, engines=_VIDEO, unit="latent frames",
        help="Latent frames that are attended to, including sink and chunk; 0: the model's default.",
    )
    sink_frames = _int(
        -1, -1, 1024, propagation=_REOPEN, engines=_VIDEO, unit="latent frames",
        help="Number of first latent frames that are never evicted; -1: the model's default.",
    )
    # fmt: on


CONTROLS: Mapping[str, ControlSpec] = MappingProxyType(
    {name: spec for name, spec in vars(ControlTable).items() if isinstance(spec, ControlRow)}
)
"""By name, in display order."""

STREAM_CONTROLS = tuple(name for name, spec in CONTROLS.items() if spec.propagation is not Propagation.REOPEN)
"""The controls that an open stream accepts: all except those that choose the engine."""

ENGINE_CONTROLS = tuple(name for name, spec in CONTROLS.items() if spec.scope == "engine")
"""Those that apply to all streams of an engine; the latest change wins."""
