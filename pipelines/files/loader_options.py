"""Owns what a user may choose when loading a model: `LoaderOptions` and, for a video model, `VideoChoices`.

Plain values that can be sent to a worker process; independent of engines and of torch. What depends on the model
(sizes, backends, names of cache policies) is checked by the engine that receives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, cast

from pipelines.core.controls import Controls
from pipelines.core.errors import ControlError, InputError

from .lora_files import LoraFile

SLICING = ("off", "auto", "on")
"""Whether an image model runs slice by slice, which takes less memory and more time; auto: if it needs to."""
_OTHER_NAMES = {"policy": "kv_policy"}  # what VideoOptions calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoChoices:
    """The choices for a video model. Every default means the model's own default.

    kv_policy: a name in cache.kv.policies.POLICIES. policy_options: its fields other than sizes. chunk_frames,
    window_frames, sink_frames: in latent frames. stream: the chunk schedule, "chunk", "step-batch" or "rolling".
    family: how a checkpoint was trained (a name in video.loading.families.FAMILIES). base: the Wan 2.1 folder that goes
    with a checkpoint. max_streams: streams open at once; 0: up to 4, as memory allows. guidance: whether streams have
    a second row for the negative prompt; None: if the model needs it. storage: of keys and values:
    "auto" or a name in cache.kv.bank.STORAGES. attention: "auto" or a name in ATTENTION_BACKENDS. text_encoder: where
    it stays between prompts: "auto", "keep", "host" or "drop". rewind_bytes: memory for the snapshots that a stream can
    rewind to.
    Raises ControlError or InputError for a value out of range or of the wrong type.
    """

    kv_policy: str = ""
    policy_options: Mapping[str, object] = field(default_factory=dict, hash=False)
    window_frames: int = 0
    sink_frames: int = -1
    chunk_frames: int = 0
    stream: str = ""
    family: str = ""
    base: str = ""
    max_streams: int = 0
    guidance: bool | None = None
    storage: str = "auto"
    attention: str = "auto"
    text_encoder: str = "auto"
    rewind_bytes: int = 2**30

    def __post_init__(self) -> None:
        _check_integers(
            window_frames=self.window_frames,
            sink_frames=self.sink_frames,
            chunk_frames=self.chunk_frames,
            max_streams=self.max_streams,
            rewind_bytes=self.rewind_bytes,
        )
        _check_texts(
            kv_policy=self.kv_policy,
            stream=self.stream,
            family=self.family,
            base=self.base,
            storage=self.storage,
            attention=self.attention,
            text_encoder=self.text_encoder,
        )
        if self.guidance is not None:
            _check_flags(guidance=self.guidance)
        if not isinstance(self.policy_options, Mapping):
            raise InputError(f"policy_options cannot be {self.policy_options!r}.", "Give a mapping of names to values.")
        check_video_counts(
            chunk_frames=self.chunk_frames,
            window_frames=self.window_frames,
            sink_frames=self.sink_frames,
            max_streams=self.max_streams,
            rewind_bytes=self.rewind_bytes,
        )

    @classmethod
    def of(cls, chosen: Mapping[str, object]) -> Self:
        """Build from choices by name, as in keyword arguments and takes. Raises InputError for an unknown one."""
        named = {_OTHER_NAMES.get(name, name): value for name, value in chosen.items()}
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(named.keys() - known)
        if unknown:
            raise InputError(f"A video model has no option {unknown[0]!r}.", f"It has: {', '.join(sorted(known))}.")
        return cls(**cast(dict[str, Any], named))

    def chosen(self) -> dict[str, object]:
        """Return the choices that differ from the defaults, by name; `VideoChoices.of` accepts them."""
        defaults = VideoChoices()
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(defaults, name)}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """What `pipelines.load.load_engine` takes besides the model's name. "auto" and 0 mean the model's own default.

    device: "auto", "cpu", "cuda", "cuda:N". dtype: "auto" or the name of a dtype. width, height: pixels; checked by the
    engine, since what they must be a multiple of depends on the model. frames_per_slot: consecutive frames that an
    image model denoises together. max_slots: rows of the ring, 1 to 64, which all streams of an image engine share.
    backend: how the networks are run. autoencoder: "auto" (the model's own), "tiny" (the small one with the same latent
    space), a folder or a hub id. allow_pickle: also read pickled weights, which can run code. safety: load the model's
    safety checker if it has one. stages: names of frame stages, in order. step_cache: reuse across the steps of an
    image model's slots, a name in pipelines.image.step_caches.STEP_CACHES; "": none. cache_profile: the path of an
    image model's cache profile; "": built-in presets. slicing: of an image model, one of SLICING. Raises ControlError
    or InputError for a value out of range or of the wrong type.
    """

    device: str = "auto"
    dtype: str = "auto"
    width: int = 0
    height: int = 0
    frames_per_slot: int = 1
    max_slots: int = 8
    backend: str = "auto"
    loras: tuple[LoraFile, ...] = ()
    autoencoder: str = "auto"
    allow_pickle: bool = False
    safety: bool = True
    video: VideoChoices = field(default_factory=VideoChoices)
    stages: tuple[str, ...] = ()
    step_cache: str = ""
    cache_profile: str = ""
    slicing: str = "off"

    def __post_init__(self) -> None:
        _check_integers(
            width=self.width, height=self.height, frames_per_slot=self.frames_per_slot, max_slots=self.max_slots
        )
        _check_texts(device=self.device, dtype=self.dtype, backend=self.backend, autoencoder=self.autoencoder)
        _check_texts(step_cache=self.step_cache, cache_profile=self.cache_profile)
        _check_flags(allow_pickle=self.allow_pickle, safety=self.safety)
        maximum = Controls.frames_per_slot.maximum
        assert maximum is not None
        if not 1 <= self.frames_per_slot <= maximum:
            raise ControlError(
                f"frames_per_slot cannot be {self.frames_per_slot}.", f"Give a value from 1 to {maximum:g}."
            )
        if not isinstance(self.video, VideoChoices):
            raise InputError(f"video cannot be {self.video!r}.", "Give choices by name.")
        if self.slicing not in SLICING:
            raise InputError(f"slicing cannot be {self.slicing!r}.", f"Use {', '.join(SLICING)}.")
        if not 1 <= self.max_slots <= 64:
            raise InputError(f"max_slots cannot be {self.max_slots}.", "Give a value from 1 to 64.")

    def changed(self, choices: Mapping[str, object]) -> Self:
        """Return a copy with other choices, by field name; `video` may be a mapping, `loras` and `stages` any sequence.

        Raises TypeError for a name that is not a field, and as construction does.
        """
        named = cast(dict[str, Any], dict(choices))
        video = named.get("video")
        if video is None or isinstance(video, Mapping):
            named["video"] = self.video if video is None else VideoChoices.of(video)
        named |= {name: tuple(named[name]) for name in ("loras", "stages") if name in named}
        return replace(self, **named)


def check_video_counts(
    *, chunk_frames: int, window_frames: int, sink_frames: int, max_streams: int, rewind_bytes: int
) -> None:
    """Raise ControlError or InputError for counts that no video engine accepts."""
    for name, value, minimum in (
        ("chunk_frames", chunk_frames, 0),
        ("window_frames", window_frames, 0),
        ("sink_frames", sink_frames, -1),
        ("max_streams", max_streams, 0),
    ):
        if value < minimum:
            raise ControlError(
                f"{name} cannot be {value}.", f"Give {minimum + 1} or more, or {minimum} for the default."
            )
    if rewind_bytes < 0:
        raise InputError(f"rewind_bytes cannot be {rewind_bytes}.", "Give 0 for none, or more.")


def _check_integers(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(f"{name} cannot be {value!r}.", "Give a whole number.")


def _check_texts(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{name} cannot be {value!r}.", "Give a name as text.")


def _check_flags(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(f"{name} cannot be {value!r}.", "Give true or false.")
