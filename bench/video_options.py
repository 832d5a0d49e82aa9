"""Owns the options that the benches of a small video model share, and loading the model and judge from them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from pipelines.backends.table import choose_backend
from pipelines.files.precision import choose_device
from pipelines.video.loading.load import VideoLoadOptions, load_video_model
from pipelines.video.model import VideoModel
from pipelines.video.options import VideoOptions
from train.classifier import Classifier, load_classifier

MODEL = Path("assets/models/mini-video")
CLASSIFIER = Path("assets/models/mini-video-judge")


def add_options(parser: argparse.ArgumentParser, *, captions: int, seconds: int) -> None:
    """Add the options that `load_model`, `options_of` and `classifier_of` read."""
    parser.add_argument("--model", default=str(MODEL), help="a model folder")
    parser.add_argument("--classifier", type=Path, default=CLASSIFIER)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of PyTorch")
    parser.add_argument("--captions", type=int, default=captions, help="streams")
    parser.add_argument("--seconds", type=int, default=seconds, help="of each stream, at 16 frames a second")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--policy", default="", help="KV policy; default: the model's")
    parser.add_argument("--backend", default="auto", help="how passes are executed")
    parser.add_argument("--autoencoder", default="auto", help="auto, stock or tiny")


def load_model(options: argparse.Namespace, *, autoencoder: str = "", auto_on_cuda: str = "auto") -> VideoModel:
    """The model of the options; notices of the loader go to stderr. auto_on_cuda: the backend that "auto" is there.

    Raises FileNotFoundError if the bundled model is requested but has not been made: it is not on a hub.
    """
    if Path(options.model) == MODEL and not MODEL.is_dir():
        raise FileNotFoundError(f"{MODEL} does not exist; make it (docs/mini-video.md), or give another --model")
    load_options = VideoLoadOptions(
        device=options.device,
        dtype=options.dtype,
        autoencoder=autoencoder or options.autoencoder,
        notice=lambda text: print(text, file=sys.stderr),
    )
    device, requested = choose_device(options.device), options.backend or "auto"
    if requested == "auto" and device.type == "cuda":
        requested = auto_on_cuda
    return load_video_model(options.model, load_options, choose_backend(requested, "video", device).backend.video)


def options_of(options: argparse.Namespace) -> VideoOptions:
    """The engine's options."""
    return VideoOptions(policy=options.policy)


def classifier_of(options: argparse.Namespace) -> tuple[Classifier, int]:
    """The picture classifier on the options' device, and the side in pixels that it was trained for."""
    config = json.loads((options.classifier / "config.json").read_text(encoding="utf-8"))
    return load_classifier(options.classifier).to(torch.device(options.device)), int(config["size_px"])


def folder_mib(folder: Path) -> float:
    """Total size of a folder's files."""
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 2)
