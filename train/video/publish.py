"""Owns the step from checkpoints to assets: ``python -m train.video.publish`` writes assets/models/mini-video.

Independent of training; the card's figures are a JSON file of names and texts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipelines.conditioning.actions import ACTION_NAMES
from train.clips.captions import clip_words
from train.clips.motions import MOTIONS
from train.publish import term, world
from train.session import TINY, TrainingSession
from train.vocabulary import SUBJECTS
from train.vocabulary_world import PLACES, STYLES

from .card import model_card
from .causal import make_networks
from .checkpoints import require_parts
from .codecs import load_codecs
from .export import export_model
from .judge import JUDGE, publish_judge
from .run import open_workshop
from .tokenizer import build_tokenizer

MODEL = Path("assets/models/mini-video")
JUDGED_FRAMES = 1024


def clip_world() -> dict[str, Any]:
    """The prompt vocabulary for world.json: mini-image's world, and motions."""
    return {
        **world(),
        "motions": [term(motion.term) for motion in MOTIONS],
        "known_words": list(clip_words()),
        "example": "a robot bouncing on the beach at sunset",
    }


def gains_of(folder: Path) -> list[float] | None:
    """The action gains of a model folder; None: it has none."""
    file = folder / "actions" / "config.json"
    gains: list[float] | None = json.loads(file.read_text(encoding="utf-8")).get("gains") if file.is_file() else None
    return gains


def publish(
    checkpoints: Path,
    folder: Path,
    *,
    transformer: str = "student",
    figures: Path | None = None,
    gains: Sequence[float] | None = None,
) -> float:
    """Write the model folder from the checkpoints of a stage ("student" or "teacher"); return its size in MiB.

    gains: of the actions; required if the folder has some, as those were measured on other weights. The text encoder is
    the teacher's, which the student was trained with. Raises FileNotFoundError for a stage that has not run, ValueError
    for gains that would be lost.
    """
    if gains is None and (old := gains_of(folder)):
        values = " ".join(map(str, old))
        raise ValueError(f"{folder} has action gains: give --gains {values}, or 1 for each action that needs none")
    session = TrainingSession(device=torch.device("cpu"), out=checkpoints, resume=checkpoints, scale=TINY)
    tokenizer = build_tokenizer()
    networks = make_networks(session.device, vocabulary=len(tokenizer), seed=session.seed)
    require_parts(session, "teacher", text=networks.text)
    require_parts(session, transformer, transformer=networks.transformer)
    measured = json.loads(figures.read_text(encoding="utf-8")) if figures else None
    return export_model(
        folder,
        codecs=load_codecs(session),
        transformer=networks.transformer,
        text_encoder=networks.text,
        tokenizer=tokenizer,
        card=model_card(measured),
        world=clip_world(),
        gains=gains,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish from the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.video.publish", description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Path("train/checkpoints"))
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--transformer", choices=["student", "teacher"], default="student")
    parser.add_argument("--figures", type=Path, help="JSON of names and texts for the card")
    parser.add_argument(
        "--gains", type=float, nargs=len(ACTION_NAMES), help="action gains (measure them with bench.actions)"
    )
    parser.add_argument("--judge", action="store_true", help="instead measure the judge and write its folder")
    parser.add_argument("--pack", type=Path, default=Path("train/data/pack.npz"), help="for --judge")
    options = parser.parse_args(arguments)
    if options.judge:
        scale = replace(TINY, eval_scenes=JUDGED_FRAMES)
        session = TrainingSession(
            device=torch.device("cpu"), out=options.checkpoints, resume=options.checkpoints, scale=scale
        )
        sizes = (len(SUBJECTS) + 1, len(PLACES) + 1, len(STYLES))
        publish_judge(session, open_workshop(session, options.pack).source, sizes, JUDGE)
        print(JUDGE)
        return
    size = publish(
        options.checkpoints,
        options.out,
        transformer=options.transformer,
        figures=options.figures,
        gains=options.gains,
    )
    print(f"{size:.1f} MiB: {options.out}")


if __name__ == "__main__":
    main()
