"""Owns the fit of the motion judge: ``python -m bench.fit_motion`` renders clips and writes motion_judge.json.

Multinomial logistic regression on the features of bench.motion_judge, over clips with every subject, place, light and
style of train.clips, each once as rendered and once degraded (noise, blur, boiling texture, flickering brightness), in
windows of 40 to 77 frames. All combinations, including held-out ones, since the judge sees no prompt. ``--check``
reports the stored judge's accuracy on fresh clips, motion by motion, without fitting.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from bench.motion import Transitions, transitions
from bench.motion_judge import FEATURES, MIN_FRAMES, MOTION_NAMES, WEIGHTS, MotionJudge, features, load_motion_judge
from bench.world_clips import load_sprites, motion_clips

STEPS, RATE, DECAY, JITTER = 600, 0.02, 1e-2, 0.1
"""Settings of the fit; the jitter in standard deviations of a feature."""
CLIPS_AT_ONCE = 22
LATENTS = 20


def degraded(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Clips [B, F, 3, H, W] in 0..1 as a model might draw them: blurred, noisy, boiling, with flickering brightness."""
    batch, count, _, height, width = frames.shape

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=frames.device)

    def amount() -> Tensor:
        return torch.rand(batch, 1, 1, 1, 1, generator=generator, device=frames.device)

    flat = frames.flatten(0, 1)
    soft = functional.interpolate(functional.avg_pool2d(flat, 4), (height, width), mode="bilinear").view_as(frames)
    blur = amount()
    boil = functional.interpolate(random(batch * count, 3, 8, 8), (height, width), mode="bicubic").view_as(frames)
    gain = 1 + 0.04 * amount() * random(batch, count, 1, 1, 1)
    drawn = frames * (1 - blur) + soft * blur + 0.10 * amount() * random(*frames.shape) + 0.04 * amount() * boil
    return (drawn * gain).clamp(0, 1)


def fit(measured: Tensor, truth: Tensor) -> MotionJudge:
    """The judge for measured features [N, K] of clips with motions truth int64 [N]: AdamW on jittered features."""
    mean, scale = measured.mean(0), measured.std(0).clamp(min=1e-3)
    x = (measured - mean) / scale
    generator = torch.Generator(x.device).manual_seed(0)
    layer = torch.nn.Linear(x.shape[1], len(MOTION_NAMES), device=x.device)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        jitter = JITTER * torch.randn(x.shape, generator=generator, device=x.device)
        loss = functional.cross_entropy(layer(x + jitter), truth, label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    weight, bias = layer.weight.detach().cpu(), layer.bias.detach().cpu()
    return MotionJudge(mean=mean.cpu(), scale=scale.cpu(), weight=weight, bias=bias)


def windows_of(window: Transitions, lengths: Sequence[int], generator: torch.Generator) -> list[Transitions]:
    """One window of each length (in transitions), at a random place."""
    total = window.degree.shape[1]
    starts = torch.stack([torch.randint(total - n + 1, (), generator=generator) for n in lengths]).tolist()
    return [
        Transitions(*(part[:, start : start + length] for part in window))
        for start, length in zip(starts, lengths, strict=True)
    ]


class Gathered(NamedTuple):
    """Windows' features [N, K] and motions int64 [N]; and the whole clips' Transitions and motions."""

    features: Tensor
    truth: Tensor
    clips: list[Transitions]
    motions: Tensor


def gather(clips: int, seed: int, device: torch.device, *, with_degraded: bool) -> Gathered:
    """At least `clips` fresh clips, each motion equally often, three windows each; the result is on the CPU."""
    sprites, generator = load_sprites().to(device), torch.Generator(device).manual_seed(seed)
    windows = torch.Generator().manual_seed(seed)
    collected, truth, whole, motions = [], [], [], []
    for _ in range(0, clips, CLIPS_AT_ONCE):
        spec, rendered = motion_clips(CLIPS_AT_ONCE, LATENTS, sprites, generator)
        frames = rendered.frames.transpose(1, 2)
        for drawn in [frames, degraded(frames, generator)] if with_degraded else [frames]:
            motion = Transitions(*(part.cpu() for part in transitions(drawn)))
            whole.append(motion)
            motions.append(spec.motion.cpu())
            for window in windows_of(motion, (MIN_FRAMES - 1, 60, motion.degree.shape[1]), windows):
                collected.append(features(window))
                truth.append(spec.motion.cpu())
    return Gathered(torch.cat(collected), torch.cat(truth), whole, torch.cat(motions))


def write(judge: MotionJudge, file: Path, how: str) -> None:
    """Write the numbers with six digits, one line per motion."""
    rounded = {name: [round(float(v), 6) for v in getattr(judge, name)] for name in ("mean", "scale", "bias")}
    stored = {
        "fitted": how,
        "motions": list(MOTION_NAMES),
        "features": list(FEATURES),
        **rounded,
        "weight": [[round(float(v), 6) for v in row] for row in judge.weight],
    }
    file.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def shares_right(judge: MotionJudge, windows: Sequence[Transitions], truth: Tensor) -> dict[str, float]:
    """Accuracy on the windows by motion, and the mean."""
    named = torch.cat([judge.name(window) for window in windows])
    shares = {
        name: float((named[truth == index] == index).double().mean())
        for index, name in enumerate(MOTION_NAMES)
        if (truth == index).any()
    }
    return {**shares, "mean": sum(shares.values()) / len(shares)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit and write, or check; one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.fit_motion", description=__doc__)
    parser.add_argument("--clips", type=int, default=1500, help="minimum number of rendered clips")
    parser.add_argument("--check", action="store_true", help="measure the stored judge on fresh clips")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if options.check:
        fresh = gather(options.clips, 7_001, device, with_degraded=False)
        shares = shares_right(load_motion_judge(options.out), fresh.clips, fresh.motions)
    else:
        gathered = gather(options.clips, 7_000, device, with_degraded=True)
        judge = fit(gathered.features, gathered.truth)
        write(judge, options.out, f"python -m bench.fit_motion --clips {options.clips}")
        shares = {"fitted": float((judge.of_features(gathered.features).argmax(1) == gathered.truth).double().mean())}
    sys.stdout.write(json.dumps({name: round(value, 4) for name, value in shares.items()}) + "\n")


if __name__ == "__main__":
    main()
