"""Owns mini-video's judge: mini-image's classifier, fine-tuned on single frames of rendered clips, and its files.

Clips show what still scenes do not: subjects upside down, near and far, places seen after a camera move. Independent of
the generator.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as functional
from torch import Tensor

from train.bank import SourceMaterial
from train.classifier import HEADS, Classifier, fit_classifier, load_classifier, predict, save_classifier
from train.clips.actions import sample_actions
from train.clips.motions import sample_clip_specs
from train.clips.render import render_clips
from train.networks import IMAGE_SIZE_PX
from train.session import TrainingSession

from .networks import VIDEO_SIZE_PX

STAGE = "judge"
CLASSIFIER = Path("assets/models/mini-classifier")
JUDGE = Path("assets/models/mini-video-judge")
_SALT = 71


def frame_bank(
    session: TrainingSession,
    source: SourceMaterial,
    count: int,
    generator: torch.Generator,
    *,
    held_out: bool | None = False,
) -> tuple[Tensor, Tensor]:
    """(uint8 [count, 3, 192, 192], labels int64 [count, 3]): one frame per clip, upscaled from 128 px."""
    pictures, truth = [], []
    for start in range(0, count, session.scale.video_chunk * 8):
        n = min(session.scale.video_chunk * 8, count - start)
        spec = sample_clip_specs(n, generator, session.device, held_out, subjects=source.sprites.shape[0])
        actions = sample_actions(n, 1, generator, session.device)
        clips = render_clips(spec, source.sprites, actions, generator, latents=1, size_px=VIDEO_SIZE_PX, any_phase=True)
        pictures.append((enlarged(clips.frames[:, :, 0]).clamp(0, 1) * 255).round().byte())
        truth.append(torch.stack([spec.subject + 1, spec.place + 1, spec.style], 1))
    return torch.cat(pictures), torch.cat(truth)


def enlarged(frames: Tensor) -> Tensor:
    """Frames [n, 3, 128, 128] at the classifier's size."""
    return functional.interpolate(frames, size=IMAGE_SIZE_PX, mode="bilinear", align_corners=False)


def train_judge(
    session: TrainingSession, source: SourceMaterial, sizes: tuple[int, int, int], seconds: float
) -> Classifier:
    """Train for seconds, including rendering, from the checkpoint or else from mini-image's classifier; log its
    accuracy on new clips of all combinations.
    """

    def render(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return frame_bank(session, source, session.scale.classifier_bank, generator)

    still = load_classifier(CLASSIFIER)
    start = still.state_dict() if still.sizes == sizes else None
    model = fit_classifier(session, STAGE, render, sizes, seconds, start=start)
    session.log(STAGE, **shares_right(session, source, model))
    return model


def shares_right(session: TrainingSession, source: SourceMaterial, model: Classifier) -> dict[str, float]:
    """Its accuracy on new frames of all combinations."""
    fresh = session.generator(_SALT)
    pictures, truth = frame_bank(session, source, session.scale.eval_scenes, fresh, held_out=None)
    right = (predict(model, pictures.float() / 255) == truth).float().mean(0).tolist()
    return dict(zip(HEADS, right, strict=True))


def publish_judge(session: TrainingSession, source: SourceMaterial, sizes: tuple[int, int, int], folder: Path) -> None:
    """Write the model folder from the stage's checkpoint, with its accuracy on the card."""
    model = Classifier(sizes)
    session.require(STAGE, model=model)
    save_classifier(model, folder)
    shares = ", ".join(f"{name} {share:.1%}" for name, share in shares_right(session, source, model.eval()).items())
    (folder / "README.md").write_text(
        "# mini-video-judge\n\n"
        "The independent judge of mini-video: mini-classifier, trained on for single frames of the rendered clips\n"
        "of train/clips/ (128x128, enlarged to 192x192): subjects that turn, near and far, other views of a place.\n"
        "It has never seen what a generator draws. Load it with `train.classifier.load_classifier`. Apache-2.0.\n\n"
        f"Named right on single frames of fresh clips, held-out combinations included: {shares}.\n",
        encoding="utf-8",
    )
