"""Measures how well actions are followed: displacement by optical flow against the command, axis by axis.

`python -m bench.actions --json`: still held-out scenes, one axis each, commands of -1 to 1 that change every two
latents and return before a bound of the world stops them; correlation and slope over latent frames. Flow underestimates
motion in some scenes (sky and grass hardly show how far a camera tilts), so slopes are divided by those measured in
rendered clips of the same scenes and commands, which move exactly as commanded. Streams without actions show the
residual motion. The rendered clips only: --rendered.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from bench.command import bench_parser, print_listing
from bench.motion import Transitions, transitions
from bench.motion_judge import Displacements, displacements_of
from bench.rollouts import ROLLOUT_BACKEND, Rollout, RolloutSettings
from bench.video_options import add_options, load_model, options_of
from bench.video_quality import FRAME_RATE
from bench.video_scores import Bar
from bench.world_clips import as_bytes, load_sprites, no_actions
from pipelines.conditioning.actions import ACTION_NAMES
from train.clips.actions import SPEED, ZOOM_SPEED
from train.clips.captions import canonical_clip_caption
from train.clips.motions import ClipSpec, sample_clip_specs
from train.clips.render import render_clips

HELD_LATENTS = 2
REACH = 2.2
"""How far, in latents at full deflection, the accumulated commands may go from the centre: 13 px, within all bounds."""
REST_LATENTS = 3
"""Latents without a command at the beginning, so that the scene is established."""
SNOW = 3
"""The light whose falling flakes mask camera motion: such scenes are left out."""
CLEAR_STYLE = 0
"""Plain: the others have screen-fixed patterns (hatching, paper, blocks, scan lines, hues by height), which make the
measured motion too small.
"""


def axis_commands(streams: int, latents: int, generator: torch.Generator) -> Tensor:
    """[streams, latents, 5]: stream i commands axis i mod 5 only, with values -1, -0.5, 0.5, 1 held for two latents."""
    commands = torch.zeros(streams, latents, len(ACTION_NAMES))
    for stream in range(streams):
        place = 0.0
        for first in range(REST_LATENTS, latents, HELD_LATENTS):
            size = 1.0 if torch.rand((), generator=generator) < 0.5 else 0.5
            sign = 1.0 if torch.rand((), generator=generator) < 0.5 else -1.0
            if abs(place + sign * size * HELD_LATENTS) > REACH:
                sign = -1.0 if place > 0 else 1.0
            commands[stream, first : first + HELD_LATENTS, stream % len(ACTION_NAMES)] = sign * size
            place += sign * size * HELD_LATENTS
    return commands


def scenes(count: int, subjects: int, seed: int) -> ClipSpec:
    """Still held-out scenes with a subject, a place, no snow and the plain style, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    spec = sample_clip_specs(40 * count + 400, generator, torch.device("cpu"), True, subjects=subjects)
    fit = (spec.subject >= 0) & (spec.place >= 0) & (spec.light != SNOW) & (spec.style == CLEAR_STYLE)
    rows = fit.nonzero().flatten()[:count]
    chosen = ClipSpec(*(field[rows] for field in spec))
    return chosen._replace(motion=torch.zeros_like(chosen.motion))


def by_latent(displacements: Displacements) -> Tensor:
    """Mean displacement per frame in each latent but the first, [N, latents - 1, 5] by ACTION_NAMES."""
    moved = torch.cat([displacements.camera, displacements.subject], -1)
    whole = moved.shape[1] // 4 * 4
    return moved[:, :whole].reshape(moved.shape[0], -1, 4, moved.shape[2]).mean(2)


def full_speed(side_px: int) -> Tensor:
    """Motion per frame of each axis at full deflection: pixels; for zoom, the log of the factor."""
    pixels = SPEED * side_px
    return torch.tensor([pixels, pixels, ZOOM_SPEED, pixels, pixels])


def compared(commands: Tensor, measured: Tensor, side_px: int) -> dict[str, dict[str, float]]:
    """Correlation and slope (least squares through the origin, in units of the command) by axis.

    commands: [N, latents, 5]; measured: [N, latents - 1 or more, 5], as `by_latent`: whole chunks may exceed latents.
    """
    measured = measured[:, : commands.shape[1] - 1]
    commanded = (commands[:, 1 : 1 + measured.shape[1]] * full_speed(side_px)).double()
    result = {}
    for axis, name in enumerate(ACTION_NAMES):
        streams = commands[..., axis].abs().amax(1) > 0
        x, y = commanded[streams][..., axis].flatten(), measured[streams][..., axis].double().flatten()
        if x.numel() < 2:
            continue
        correlation = torch.corrcoef(torch.stack([x, y]))[0, 1]
        slope = (x * y).sum() / x.square().sum()
        result[name] = {"correlation": round(float(correlation), 4), "slope": round(float(slope), 4)}
    return result


def calibrated(axes: dict[str, dict[str, float]], truth: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Figures of a model with `slope` relative to the slope measured in the ground truth; both are kept."""
    return {
        name: {
            "correlation": axis["correlation"],
            "slope": round(axis["slope"] / truth[name]["slope"], 4),
            "measured_slope": axis["slope"],
            "truth_slope": truth[name]["slope"],
        }
        for name, axis in axes.items()
    }


def residual_px(measured: Tensor) -> dict[str, float]:
    """Mean absolute motion per frame without commands: camera and subject, in pixels (the larger of x and y)."""
    size = measured.abs().mean((0, 1))
    camera, subject = float(torch.maximum(size[0], size[1])), float(torch.maximum(size[3], size[4]))
    return {"camera_px": round(camera, 4), "subject_px": round(subject, 4), "zoom": round(float(size[2]), 5)}


def measured_of(pieces: Iterable[Tensor]) -> Tensor:
    """`by_latent` of streams uint8 [N, F, H, W, 3] in pieces."""
    parts: list[Transitions] = []
    last: Tensor | None = None
    for piece in pieces:
        pixels = piece.permute(0, 1, 4, 2, 3).float() / 255
        joined = pixels if last is None else torch.cat([last, pixels], 1)
        last = pixels[:, -1:].clone()
        if joined.shape[1] > 1:
            parts.append(Transitions(*(part.cpu() for part in transitions(joined, exact=True))))
    return by_latent(displacements_of(Transitions.joined(parts)))


def passed(axes: dict[str, dict[str, float]], rest: dict[str, float]) -> list[Bar]:
    """The bars: correlation at least 0.9, slope 0.8 to 1.2, at most 0.2 px per frame without commands."""
    bars = [Bar(name=f"{name}_correlation", value=axis["correlation"], minimum=0.9) for name, axis in axes.items()]
    bars += [Bar(name=f"{name}_slope", value=axis["slope"], minimum=0.8, maximum=1.2) for name, axis in axes.items()]
    return [*bars, *(Bar(name=name, value=rest[name], maximum=0.2) for name in ("camera_px", "subject_px"))]


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures as one dictionary."""
    sprites = load_sprites()
    spec = scenes(options.captions, sprites.shape[0], options.seed)
    latents = 1 + options.seconds * FRAME_RATE // 4
    commands = axis_commands(options.captions, latents, torch.Generator().manual_seed(options.seed))
    frames = 1 + 4 * (latents - 1)

    def rendered(actions: Tensor | None) -> Iterable[Tensor]:
        device = torch.device(options.device)
        generator = torch.Generator(device).manual_seed(options.seed)
        commanded = no_actions(options.captions, latents) if actions is None else actions
        world = ClipSpec(*(part.to(device) for part in spec))
        clips = render_clips(world, sprites.to(device), commanded.to(device), generator, latents=latents)
        yield as_bytes(clips.frames)

    truth = compared(commands, measured_of(rendered(commands)), 128)
    if options.rendered:
        name, axes, rest = "rendered clips", truth, residual_px(measured_of(rendered(None)))
    else:
        model = load_model(options, auto_on_cuda=ROLLOUT_BACKEND)
        name = model.name
        captions = [canonical_clip_caption(*row) for row in torch.stack(list(spec), 1).tolist()]
        settings = RolloutSettings(options=options_of(options), seed=options.seed)

        def streams(actions: Tensor | None) -> Iterable[Tensor]:
            return Rollout(model, captions, settings, actions=actions).pieces(frames)

        axes = calibrated(compared(commands, measured_of(streams(commands)), model.size_px[0]), truth)
        rest = residual_px(measured_of(streams(None)))
    bars = {bar.name: bar.record() for bar in passed(axes, rest)}
    return {
        "bench": "actions",
        "model": name,
        "streams": options.captions,
        "seconds": options.seconds,
        "axes": axes,
        "without_actions": rest,
        "bars": bars,
        "all_met": all(bar["met"] for bar in bars.values()),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = bench_parser("actions", __doc__)
    add_options(parser, captions=40, seconds=8)
    parser.add_argument("--rendered", action="store_true", help="judge rendered clips instead of a model")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    print_listing(measure(options), one_line=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
