"""Owns which controls a video stream can take, the model's defaults of them, and what they say of the next chunk.

Knows the preset and the kind of stream; no cache and no frame.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.core.controls import Control, Controls, changeable
from pipelines.core.errors import ControlError

from .chunk_steps import ChunkSteps, input_steps, prompt_steps
from .schedules import ChunkSchedule
from .state import VideoCore

EVENTS = Control(scene_cut=False, rewind_to=-1)
"""Controls that ask for something once, as they are when it is done."""
_MIN_SCALE = {True: 0.02, False: 0.11}  # of noise, by whether the preset's steps are warped


def default_controls(core: VideoCore) -> Controls:
    """The table's defaults with the model's own."""
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
    """`current` with `control` applied. Raises ControlError, with the remedy, where that cannot be."""
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
            f"chunk_steps cannot be {count}.", f"This kind of stream has a place for each of {len(preset.steps)} steps."
        )
    prompt_steps(preset, count)
    strength = candidate.strength
    minimum = _MIN_SCALE[preset.warp]
    if strength < minimum:
        raise ControlError(f"strength cannot be {strength:g} for these weights.", f"Give {minimum:g} or more.")
    input_steps(preset, strength, count, same_number=chunk_schedule.fixed_steps)
    if candidate.guidance_scale > 1 and core.branches == 1:
        raise ControlError(
            f"guidance_scale cannot be {candidate.guidance_scale:g}: these streams have no place for a "
            "negative prompt, as the weights were distilled without.",
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
    """Raise ControlError where chunks overlap in time: there is no moment to go back to."""
    if not chunk_schedule.can_rewind:
        raise ControlError(
            "rewind_to is for streams that denoise one chunk after another.",
            "Load the engine with the kind of stream 'chunk'.",
        )


def chunk_latents(core: VideoCore, controls: Controls, *, first: bool) -> int:
    """Latent frames of the next chunk."""
    usual = controls.chunk_frames or core.preset.chunk_frames
    return (controls.first_chunk_frames or usual) if first else usual


def number_of_steps(core: VideoCore, controls: Controls, *, first: bool) -> int:
    """Steps of the next chunk from the prompt; of one from input frames at most."""
    return len(prompt_steps(core.preset, controls.chunk_steps, first=first).steps)


def chunk_plan(
    core: VideoCore, controls: Controls, *, first: bool, noise_scale: float | None, same_number: bool
) -> ChunkSteps:
    """The steps of the next chunk. noise_scale: None where it comes from the prompt alone."""
    count = controls.chunk_steps
    if noise_scale is None:
        return prompt_steps(core.preset, count, first=first)
    minimum = _MIN_SCALE[core.preset.warp]
    return input_steps(core.preset, max(noise_scale, minimum), count, same_number=same_number)
