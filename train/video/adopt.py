"""Converts assets back to checkpoints: ``python -m train.video.adopt`` lets training continue from the shipped weights.

python -m train.video.adopt --out DIR [--as teacher student]

Writes the published transformer as the checkpoint of one or more stages, with the text encoder as the teacher's, and
both autoencoders. A student's weights can serve as a teacher's: flow matching recovers many-step sampling in minutes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from train.session import TINY, TrainingSession

from .causal import make_networks
from .checkpoints import save_parts
from .codecs import STAGE as AUTOENCODERS
from .distill import STUDENT
from .export import ACTIONS
from .publish import MODEL
from .teacher import STAGE as TEACHER
from .tokenizer import build_tokenizer

STAGES = (TEACHER, STUDENT)


def adopt(model: Path, out: Path, stages: Sequence[str] = STAGES) -> None:
    """Write out/STAGE-*.safetensors and out/video_autoencoder.safetensors from a folder written by publish.

    Raises FileNotFoundError if a part of the folder is missing, RuntimeError for other tensor names or shapes.
    """
    out.mkdir(parents=True, exist_ok=True)
    session = TrainingSession(device=torch.device("cpu"), out=out, resume=out, scale=TINY)
    networks = make_networks(session.device, vocabulary=len(build_tokenizer()), seed=session.seed)
    actions = load_file(model / "actions" / "model.safetensors")
    stock = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    networks.transformer.load_state_dict(stock | {f"{ACTIONS}{name}": value for name, value in actions.items()})
    text = load_file(model / "text_encoder" / "model.safetensors")
    own = networks.text.state_dict()
    shared = {name: text["shared.weight"] for name in own if name not in text}
    networks.text.load_state_dict(text | shared)
    for stage in stages:
        parts = {"text": networks.text} if stage == TEACHER else {}
        save_parts(session, stage, transformer=networks.transformer, **parts)
    session.save(
        AUTOENCODERS,
        vae=load_file(model / "vae" / "diffusion_pytorch_model.safetensors"),
        tiny=load_file(model / "tiny_vae" / "model.safetensors"),
        moments=moments_of(json.loads((model / "vae" / "config.json").read_text(encoding="utf-8"))),
    )


def moments_of(config: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
    """The latents' normalisation, as in codecs.Moments, from AutoencoderKLWan's configuration."""
    return {"mean": torch.tensor(config["latents_mean"]), "std": torch.tensor(config["latents_std"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Adopt from the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.video.adopt", description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, default=Path("train/checkpoints"))
    parser.add_argument("--as", dest="stages", nargs="+", choices=STAGES, default=list(STAGES))
    options = parser.parse_args(arguments)
    adopt(options.model, options.out, options.stages)


if __name__ == "__main__":
    main()
