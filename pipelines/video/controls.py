"""Owns the validation of a video stream's controls, their defaults for a model, and what follows for the next chunk.

Depends on the preset and the chunk schedule; independent of the cache and of frames.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.core.controls import Control, Controls, changeable
from pipelines.core.errors import ControlError

from .chunk_steps import ChunkSteps, input_steps, prompt_steps
from .schedules import ChunkSchedule
from .state import VideoCore

EVENTS = Control(scene_cut=False, rewind_to=-1)
"""One-off requests, with the values they return to."""
_MIN_SCALE = {True: 0.02, False: 0.11}  # smallest noise scale, by whether the preset's steps are warped


def default_controls(core: VideoCore) -> Controls:
    """Return the control table's defaults, overridden by the model's."""
    preset = core.preset
    fixed = {
        "model": core.model.name,
        "width": core.width,
        "height": core.height,
        "kv_policy": preset.policy,
        "window_frames": preset.window_frames,
        "sink_frames": preset.sink_frames,
    }
    own: Mapping[str, object] = {
        "guidance_scale": preset.guidance,
        "negative_prompt": preset.negative_prompt,
        "seed_lock": False,
        "strength": preset.strength,
    }
    return Controls().updated(Control.of({**fixed, **own}))


def checked(core: VideoCore, chunk_schedule: ChunkSchedule, current: Controls, control: Control) -> Controls:
    """Return `current` with `control` applied. Raises ControlError, with the remedy, for invalid values."""
    candidate = changeable(current, control, engine="video")
    preset = core.preset
    for name in ("chunk_frames", "first_chunk_frames"):
        if candidate.value_of(name) > preset.chunk_frames:
            raise ControlError(
                f"{name} cannot be {candidate.value_of(name)}.",
                f"This engine was made for chunks of 1 to {preset.chunk_frames} latent frames: load it with more.",
            )
    count = candidate.chunk_steps
    if chunk_schedule.fixed_steps and count > len(preset.steps):
        raise ControlError(
            f"chunk_steps cannot be {count}.", f"This kind of stream runs at most {len(preset.steps)} steps."
        )
    prompt_steps(preset, count)
    strength = candidate.strength
    minimum = _MIN_SCALE[preset.warp]
    if strength < minimum:
        raise ControlError(f"strength cannot be {strength:g} for these weights.", f"Give {minimum:g} or more.")
    input_steps(preset, strength, count, same_number=chunk_schedule.fixed_steps)
    if candidate.guidance_scale > 1 and core.branches == 1:
        raise ControlError(
            f"guidance_scale cannot be {candidate.guidance_scale:g}: these streams have no cache row for a "
            "negative prompt, as the weights were distilled without guidance.",
            "Leave it at 1, or load the engine with guidance.",
        )
    if candidate.input_use == "first-frame" and not chunk_schedule.takes_pictures:
        raise ControlError(
            "input_use cannot be 'first-frame' in a step-batched stream, which has no clean pass.",
            "Load the engine with the kind of stream 'chunk'.",
        )
    if candidate.rewind_to >= 0:
        check_rewind(chunk_schedule)
    for conditioner in core.conditioners:
        conditioner.check(candidate)
    return candidate


def check_rewind(chunk_schedule: ChunkSchedule) -> None:
    """Raise ControlError if chunks overlap in time: there is then no moment to rewind to."""
    if not chunk_schedule.can_rewind:
        raise ControlError(
            "rewind_to works only in streams that denoise one chunk after another.",
            "Load the engine with the kind of stream 'chunk'.",
        )


def chunk_latents(core: VideoCore, controls: Controls, *, first: bool) -> int:
    """Return the latent frames of the next chunk."""
    usual = controls.chunk_frames or core.preset.chunk_frames
    return (controls.first_chunk_frames or usual) if first else usual


def number_of_steps(core: VideoCore, controls: Controls, *, first: bool) -> int:
    """Return the steps of the next chunk if it is prompt-only; a chunk of input frames has at most that many."""
    return len(prompt_steps(core.preset, controls.chunk_steps, first=first).steps)


def chunk_plan(
    core: VideoCore, controls: Controls, *, first: bool, noise_scale: float | None, same_number: bool
) -> ChunkSteps:
    """Return the steps of the next chunk. noise_scale: of its input frames; None if it is prompt-only."""
    count = controls.chunk_steps
    if noise_scale is None:
        return prompt_steps(core.preset, count, first=first)
    minimum = _MIN_SCALE[core.preset.warp]
    return input_steps(core.preset, max(noise_scale, minimum), count, same_number=same_number)
