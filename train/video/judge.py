"""Owns the training of mini-video's judge: mini-image's classifier, on single frames of rendered clips.

Clips show what still scenes do not: subjects upside down, near and far, places that the camera has moved along.
Knows nothing of the generator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from train.bank import Source
from train.classifier import Classifier, fit_classifier, predict
from train.clips.actions import sample_actions
from train.clips.motions import sample_clip_specs
from train.clips.render import render_clips
from train.networks import IMAGE_SIZE_PX
from train.session import Session
from train.video.networks import VIDEO_SIZE_PX

STAGE = "judge"
_SALT = 71


def frame_bank(
    session: Session, source: Source, count: int, generator: torch.Generator, *, held_out: bool | None = False
) -> tuple[Tensor, Tensor]:
    """(uint8 [count, 3, 192, 192], labels int64 [count, 3]): a frame each of clips at 128 px, enlarged."""
    pictures, truth = [], []
    for start in range(0, count, session.scale.video_chunk * 8):
        n = min(session.scale.video_chunk * 8, count - start)
        spec = sample_clip_specs(n, generator, session.device, held_out, subjects=source.sprites.shape[0])
        actions = sample_actions(n, 1, generator, session.device)
        frames = render_clips(spec, source.sprites, actions, generator, latents=1, size_px=VIDEO_SIZE_PX).frames[
            :, :, 0
        ]
        pictures.append((enlarged(frames).clamp(0, 1) * 255).round().byte())
        truth.append(torch.stack([spec.subject + 1, spec.place + 1, spec.style], 1))
    return torch.cat(pictures), torch.cat(truth)


def enlarged(frames: Tensor) -> Tensor:
    """Frames [n, 3, 128, 128] at the classifier's size."""
    return functional.interpolate(frames, size=IMAGE_SIZE_PX, mode="bilinear", align_corners=False)


def train_judge(session: Session, source: Source, sizes: tuple[int, int, int], seconds: float) -> Classifier:
    """Train for seconds, rendering included; log the shares that it names right on fresh clips of all combinations."""

    def render(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return frame_bank(session, source, session.scale.classifier_bank, generator)

    model = fit_classifier(session, STAGE, render, sizes, seconds)
    fresh = session.generator(_SALT)
    pictures, truth = frame_bank(session, source, session.scale.eval_scenes, fresh, held_out=None)
    right = (predict(model, pictures.float() / 255) == truth).float().mean(0).tolist()
    session.log(STAGE, subject=right[0], place=right[1], style=right[2])
    return model
