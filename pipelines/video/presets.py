"""Owns the preset of a family of video models (steps, cache policy, size) and its licence.

Independent of particular families, files and tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from cache.kv.policies import POLICIES, KVPolicy
from pipelines.core.errors import ModelError

if TYPE_CHECKING:
    from .flow import StepList

STREAMS = ("chunk", "step-batch", "rolling")
SAMPLERS = ("renoise", "euler")


@dataclass(frozen=True, slots=True, kw_only=True)
class Licence:
    """What the publisher permits the weights to be used for. commercial: False warns the user before use."""

    name: str
    commercial: bool = True
    note: str = ""

    @property
    def summary(self) -> str:
        """One line for display, on the page and by `zoetrope models`."""
        parts = [self.name, *(() if self.commercial else ("no commercial use",)), *((self.note,) if self.note else ())]
        return "; ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPreset:
    """Defaults of one family; the user may change each of them.

    steps: the family's published list, decreasing, each in 0..1000 (it ends in 0 only if that is a real last pass, as
    in Krea's). warp: True: steps are indices into the table of 1000 shifted timesteps (T -> table[1000 - T]); False:
    they are the network's timesteps themselves. shift: of the flow-matching schedule. first_steps: the list for a
    stream's first chunk; empty: the same. chunk_frames, window_frames (sink and chunk included), sink_frames: latent
    frames. policy: a name of cache.kv.policies.POLICIES; policy_options: its fields besides these sizes;
    other_policies: by name of another policy, the options that suit the weights. stream: "chunk" (n steps, then a clean
    pass), "step-batch" (a cache row for each step, no clean pass) or "rolling" (all steps in one joint window).
    sampler: "renoise" (fresh noise between steps, for few-step models) or "euler". guidance: guidance scale, 1 for
    models that need no negative prompt. clean_pass: whether a pass at t = 0 rewrites the chunk's keys and values.
    strength: how far input frames are noised, (0, 1]. frame_rate: frames per second. width, height: pixels.
    """

    steps: tuple[int, ...] = (1000, 750, 500, 250)
    warp: bool = True
    shift: float = 5.0
    first_steps: tuple[int, ...] = ()
    chunk_frames: int = 3
    window_frames: int = 21
    sink_frames: int = 0
    policy: str = "window"
    policy_options: Mapping[str, Any] = field(default_factory=dict)
    other_policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    stream: str = "chunk"
    sampler: str = "renoise"
    clean_pass: bool = True
    guidance: float = 1.0
    negative_prompt: str = ""
    strength: float = 0.8
    frame_rate: int = 16
    width: int = 832
    height: int = 480

    def __post_init__(self) -> None:
        for steps in (self.steps, self.first_steps):
            falling = list(steps) == sorted(set(steps), reverse=True)
            if not falling or any(not 0 <= step <= 1000 for step in steps):
                raise ModelError(
                    f"The steps {steps} do not decrease from at most 1000.", "Give for example 1000,750,500,250."
                )
        if not self.steps:
            raise ModelError("The preset has no steps.", "Give at least one step, for example 1000.")
        if self.stream not in STREAMS:
            raise ModelError(f"There is no kind of stream {self.stream!r}.", f"Use one of: {', '.join(STREAMS)}.")
        if self.sampler not in SAMPLERS:
            raise ModelError(f"There is no sampler {self.sampler!r}.", f"Use one of: {', '.join(SAMPLERS)}.")
        minimum = self.sink_frames + self.pass_frames
        if self.chunk_frames < 1 or self.sink_frames < 0 or self.window_frames < minimum:
            raise ModelError(
                f"A window of {self.window_frames} latent frames cannot hold a sink of {self.sink_frames} and "
                f"a pass of {self.pass_frames}.",
                f"Use chunks of at least 1, a sink of at least 0 and a window of at least {minimum}.",
            )

    @property
    def pass_frames(self) -> int:
        """Latent frames of one denoising pass: one chunk, or in a joint window one chunk for each step."""
        return self.chunk_frames * (len(self.steps) if self.stream == "rolling" else 1)

    def step_list(self, *, first: bool = False) -> StepList:
        """Return the steps as a `StepList`. first: of a stream's first chunk."""
        from .flow import StepList

        raw = self.first_steps if first and self.first_steps else self.steps
        return StepList(raw=raw, shift=self.shift, warp=self.warp)

    def cache_options(self, policies: Mapping[str, type[KVPolicy]] = POLICIES) -> dict[str, Any]:
        """Return the options of cache.kv.policies.make_policy. Raises ModelError if there is no such policy."""
        if self.policy not in policies:
            raise ModelError(f"There is no cache policy {self.policy!r}.", f"Use one of: {', '.join(policies)}.")
        known = {entry.name for entry in fields(policies[self.policy])}
        sizes = {
            "chunk_frames": self.pass_frames,
            "window_frames": self.window_frames,
            "sink_frames": self.sink_frames,
        }
        return {**{name: value for name, value in sizes.items() if name in known}, **self.policy_options}
