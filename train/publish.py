"""Owns the step from checkpoints to assets: ``python -m train.publish`` writes both bundled models and the model card.

Independent of training; the card's figures are read from the JSON of bench.mini_image.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .captions import EMPTY_WORDS, PHOTO_WORDS, template_words
from .card import classifier_card, model_card
from .classifier import Classifier, save_classifier
from .export import export_model
from .networks import make_autoencoder, make_text_encoder, make_unet
from .session import TINY, TrainingSession
from .tokenizer import build_tokenizer
from .vocabulary import SUBJECTS
from .vocabulary_world import LIGHTS, PLACES, STUDIO, STYLES, Term

MODEL = Path("assets/models/mini-image")
CLASSIFIER = Path("assets/models/mini-classifier")
SHEETS = Path("docs/images")
"""With the docs, to keep the model folder small."""
STUDENT_SHARE = 0.67
"""The shipped weights interpolate between the teacher's (0) and its student's (1), as in WiSE-FT (Wortsman et al.
2022): the student alone bleaches plain scenes, the teacher alone blurs pixel art; docs/log.md has the figures.
"""


def term(item: Term) -> dict[str, Any]:
    """A component's name and accepted words."""
    return {"name": item.name, "words": list(dict.fromkeys((*item.labels, *item.phrases)))}


def world() -> dict[str, Any]:
    """The prompt vocabulary for world.json: every component with its accepted words, and all known words."""
    return {
        "subjects": [{"name": s.name, "words": list(s.words)} for s in SUBJECTS],
        "places": [term(place) for place in PLACES],
        "no_place": term(STUDIO),
        "lights": [term(light) for light in LIGHTS],
        "styles": [term(style) for style in STYLES],
        "photo_words": list(PHOTO_WORDS),
        "empty_words": list(EMPTY_WORDS),
        "known_words": list(template_words()),
        "example": "a robot on the beach at sunset, pencil sketch",
    }


@torch.no_grad()
def mix(unet: nn.Module, student: nn.Module, share: float) -> None:
    """Interpolate unet's weights towards student's by share, in place."""
    for weight, other in zip(unet.parameters(), student.parameters(), strict=True):
        weight.lerp_(other, share)


def publish(checkpoints: Path, figures: Path | None, sheets: Path | None) -> float:
    """Write assets/models/mini-image and mini-classifier from checkpoints; return the model's MiB without its card."""
    session = TrainingSession(device=torch.device("cpu"), out=checkpoints, resume=checkpoints, scale=TINY)
    tokenizer = build_tokenizer(template_words())
    vae, text, unet = make_autoencoder(), make_text_encoder(tokenizer), make_unet()
    session.require("autoencoder", vae=vae)
    session.require("diffusion", unet=unet, text=text)
    student = make_unet()
    session.require("student", unet=student)
    mix(unet, student, STUDENT_SHARE)
    size = export_model(MODEL, vae=vae, text_encoder=text, unet=unet, tokenizer=tokenizer, world=world())
    judge = Classifier((len(SUBJECTS) + 1, len(PLACES) + 1, len(STYLES)))
    session.require("classifier", model=judge)
    save_classifier(judge, CLASSIFIER)
    measured = json.loads(figures.read_text(encoding="utf-8")) if figures else None
    captions: list[str] = []
    (CLASSIFIER / "README.md").write_text(classifier_card(measured), encoding="utf-8")
    if sheets is not None:
        captions = (sheets / "sheet-captions.txt").read_text(encoding="utf-8").splitlines()
        for name in ("captions", "photos"):
            shutil.copyfile(sheets / f"sheet-{name}.jpg", SHEETS / f"mini-image-{name}.jpg")
    card = model_card(measured, captions)
    (MODEL / "README.md").write_text(card, encoding="utf-8")
    return size


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish from the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.publish", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("train/checkpoints"))
    parser.add_argument("--figures", type=Path, help="JSON printed by bench.mini_image")
    parser.add_argument("--sheets", type=Path, help="folder with sheet-captions.jpg and sheet-photos.jpg")
    options = parser.parse_args(arguments)
    publish(options.checkpoints, options.figures, options.sheets)


if __name__ == "__main__":
    main()
