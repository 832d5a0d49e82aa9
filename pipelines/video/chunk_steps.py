"""Owns which steps a chunk is denoised with: the preset's, another number of them, or those that suit an input.

Depends on presets and noise schedules only. Raises ControlError for impossible numbers of steps and noise scales.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.core.errors import ControlError

from .flow import FlowSchedule, FlowStep, StepList, camera_steps, spaced_steps
from .presets import VideoPreset


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSteps:
    """steps: noisiest first. mix: the noise level of encoded input frames, (1 - mix) z + mix n."""

    steps: tuple[FlowStep, ...]
    mix: float = 1.0


def prompt_steps(preset: VideoPreset, count: int = 0, *, first: bool = False) -> ChunkSteps:
    """Return the steps of a prompt-only chunk. count: 0 for the preset's own; first: the stream's first chunk."""
    own = preset.step_list(first=first and not count)
    if count in (0, len(own.raw)):
        return ChunkSteps(steps=own.steps())
    if own.raw[-1] == 0:  # a list whose last pass is at 0, as in Krea's
        return ChunkSteps(steps=spaced_steps(own.schedule, count))
    if not own.warp:
        if count > len(own.raw):
            raise ControlError(f"chunk_steps cannot be {count}.", f"These weights have at most {len(own.raw)} steps.")
        return ChunkSteps(steps=own.steps()[:count])
    raw = tuple(round(own.schedule.train_steps * (1 - i / count)) for i in range(count))
    return ChunkSteps(steps=StepList(raw=raw, shift=own.shift, warp=True).steps())


def input_steps(preset: VideoPreset, noise_scale: float, count: int = 0, *, same_number: bool = False) -> ChunkSteps:
    """Return the steps of a chunk that redraws input frames with the given noise scale.

    Raw timesteps (StreamDiffusionV2): the first step is at int(1000 s) - 100, latents are mixed with s. Warped steps:
    the first step is entry 1000 s of the table, and latents are mixed with its sigma (Krea realtime-video). Of the
    other steps, those below the first are kept. same_number: the number of steps is fixed (each has its own cache row):
    the others are scaled down in proportion instead.
    """
    usual = prompt_steps(preset, count).steps
    schedule = FlowSchedule(shift=preset.shift)
    if preset.steps[-1] == 0:
        steps = spaced_steps(schedule, len(usual), noise_scale)
        return ChunkSteps(steps=steps, mix=steps[0].sigma)
    if preset.warp:
        raw = round(schedule.train_steps * noise_scale)
        if not 1 <= raw <= schedule.train_steps:
            raise ControlError(f"The noise scale {noise_scale:g} leaves no step.", "Raise the strength.")
        entry = schedule.step(schedule.warped(raw))
        mix = entry.sigma
    else:
        entry, mix = camera_steps(usual, schedule, noise_scale)[0], noise_scale
    rest = [step for step in usual[1:] if step.timestep < entry.timestep]
    if same_number and len(rest) < len(usual) - 1:
        shares = [step.timestep / usual[0].timestep for step in usual[1:]]
        rest = [schedule.step(entry.timestep * share) for share in shares]
    return ChunkSteps(steps=(entry, *rest), mix=mix)
