"""Measures what a backend costs in quality: the judges' scores of a bundled model run by it, beside those of another.

Engines make one picture, or one clip, of each held-out caption, with the same seeds under each backend. Judges and
captions are those of bench.mini_image and bench.mini_video.
``python -m bench.backend_quality mini-image --backends eager openvino --json`` prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.motion_judge import load_motion_judge
from bench.video_quality import FRAME_RATE, StreamFigures, StreamMeter
from bench.video_scores import summary
from bench.world_clips import held_out_captions as held_out_clips
from pipelines.core.contracts import Engine
from pipelines.core.controls import Control
from pipelines.core.types import Frame
from pipelines.files.vocabulary import world_file
from pipelines.load import load_engine
from train.classifier import labels, load_classifier, predict
from train.evaluate import held_out_captions, recognition

CLASSIFIER = Path("assets/models/mini-classifier")
_BUILD_S = 1800.0


def prepared(model: str, backend: str) -> Engine:
    """Return the engine, once all that its backend compiles is in use."""
    engine = load_engine(model, backend=backend, device="cpu", notice=lambda text: None)
    if not engine.preparation.wait(_BUILD_S):
        raise SystemExit(f"{backend} did not get ready in {_BUILD_S:g} s: {engine.preparation.status}")
    return engine


def subjects() -> int:
    """Return the number of subjects that the bundled models know."""
    file = world_file("mini-image")
    assert file is not None
    return len(json.loads(file.read_text(encoding="utf-8"))["subjects"])


def made(engine: Engine, caption: str, seed: int, frames: int) -> list[Frame]:
    """Return frames of a new stream with this prompt."""
    with engine.open(Control.of({"prompt": caption, "seed": seed})) as stream:
        pulled: list[Frame] = []
        while len(pulled) < frames:
            if not stream.busy:
                stream.generate(stream.info.frames_per_chunk)
            engine.tick()
            pulled += stream.pull()
        return pulled[:frames]


def image_scores(engine: Engine, captions: int) -> dict[str, float]:
    """Shares of pictures whose subject, place and style are recognised."""
    judge = load_classifier(CLASSIFIER)
    spec, texts = held_out_captions(captions, subjects())
    found = []
    for seed, text in enumerate(texts):
        picture = torch.from_numpy(made(engine, text, seed, 1)[0].image.copy())
        with torch.no_grad():
            found.append(predict(judge, picture.permute(2, 0, 1)[None].float() / 255))
    return recognition(labels(spec), torch.cat(found))


def video_scores(engine: Engine, captions: int, seconds: int) -> dict[str, float]:
    """Shares of seconds whose subject, place, style and motion are recognised, over seconds 2 to the last."""
    side_px = int(json.loads((CLASSIFIER / "config.json").read_text(encoding="utf-8"))["size_px"])
    judge, figures = load_classifier(CLASSIFIER), []
    spec, texts = held_out_clips(captions, subjects())
    for seed, text in enumerate(texts):  # one clip at a time, or 128 of them take more than 16 GB
        clip = [frame.image for frame in made(engine, text, seed, seconds * FRAME_RATE)]
        meter = StreamMeter(judge, side_px=side_px)
        meter.add(torch.from_numpy(np.stack(clip)[None]))
        figures.append(meter.figures())
    measured = StreamFigures.concatenate(figures)
    scores: dict[str, float] = summary(measured, spec, load_motion_judge())["end"]
    return scores


def main() -> None:
    """Print the scores under each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["mini-image", "mini-video"])
    parser.add_argument("--backends", nargs="+", default=["eager", "openvino"])
    parser.add_argument("--captions", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=5, help="of each clip")
    parser.add_argument("--json", action="store_true", help="one line instead of an indented listing")
    options = parser.parse_args()
    result: dict[str, Any] = {"bench": "backend_quality", "model": options.model, "captions": options.captions}
    for backend in options.backends:
        engine, began = prepared(options.model, backend), time.perf_counter()
        scores = (
            image_scores(engine, options.captions)
            if options.model == "mini-image"
            else video_scores(engine, options.captions, options.seconds)
        )
        engine.close()
        result[backend] = {**scores, "took_s": round(time.perf_counter() - began, 1)}
    print(json.dumps(result, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
