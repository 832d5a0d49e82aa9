"""Owns the order of the training stages and their command line: ``python -m train.run STAGE... --minutes M --out DIR``.

Stages: autoencoder, classifier, diffusion, distill, scores; quick runs all of them at a tiny size. Each continues from
the files of --resume. Several stages share one process (and one latent bank); --minutes follows the same order.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from torch import Tensor

from .autoencoder import encode_pictures, train_autoencoder
from .bank import LatentBank, SourceMaterial, latent_bank, make_source
from .captions import template_words
from .classifier import Classifier, train_classifier
from .diffusion import train_teacher
from .distill import train_student
from .networks import LATENT_SCALE, make_autoencoder
from .pack import load_pack
from .scores import score_everything
from .session import FULL, TINY, TrainingSession
from .tokenizer import build_tokenizer
from .vocabulary_world import PLACES, STYLES

LOGGER = logging.getLogger("train")


@dataclass(slots=True)
class Workshop:
    """One run's session and what its stages share; the latent bank is built on first use."""

    session: TrainingSession
    source: SourceMaterial
    test_photos: Tensor
    tokenizer: Any
    _bank: LatentBank | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Classes of the classifier's heads."""
        return self.source.sprites.shape[0] + 1, len(PLACES) + 1, len(STYLES)

    def autoencoder(self, seconds: float) -> None:
        """Stage autoencoder; drops the latent bank of an older autoencoder."""
        train_autoencoder(self.session, self.source, seconds)
        self._bank = None

    def classifier(self, seconds: float) -> None:
        """Stage classifier."""
        train_classifier(self.session, self.source, self.sizes, seconds)

    def diffusion(self, seconds: float) -> None:
        """Stage diffusion: the teacher."""
        train_teacher(self.session, self.bank(), self.tokenizer, seconds)

    def distill(self, seconds: float) -> None:
        """Stage distill: the student."""
        train_student(self.session, self.bank(), self.tokenizer, seconds)

    def scores(self, seconds: float) -> None:
        """Stage scores: metrics and sample sheets of all models available."""
        vae = self.load_autoencoder()
        judge = Classifier(self.sizes).to(self.session.device)
        self.session.require("classifier", model=judge)
        score_everything(self.session, self.source, vae, judge.eval(), self.tokenizer, self.test_photos)

    def load_autoencoder(self) -> AutoencoderTiny:
        """The trained autoencoder, in evaluation mode."""
        vae = make_autoencoder().to(device=self.session.device, memory_format=torch.channels_last)
        self.session.require("autoencoder", vae=vae)
        return vae.eval()

    def bank(self) -> LatentBank:
        """The latent bank of the current autoencoder."""
        if self._bank is None:
            vae, scale, device = self.load_autoencoder(), self.session.scale, self.session.device
            began = self.session.seconds()

            @torch.no_grad()
            def encode(pictures: Tensor) -> Tensor:
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    latents = encode_pictures(vae, pictures.contiguous(memory_format=torch.channels_last))
                    return LATENT_SCALE * latents.float()

            self._bank = latent_bank(
                self.source, encode, self.tokenizer, scale.world_latents, scale.photo_latents, scale.chunk,
                self.session.generator(41),
            )  # fmt: skip
            self.session.log("bank", items=float(self._bank.changed.shape[0]), took=self.session.seconds() - began)
        return self._bank


STAGES: dict[str, Callable[[Workshop, float], None]] = {
    "autoencoder": Workshop.autoencoder,
    "classifier": Workshop.classifier,
    "diffusion": Workshop.diffusion,
    "distill": Workshop.distill,
    "scores": Workshop.scores,
}


def open_workshop(session: TrainingSession, pack_file: Path) -> Workshop:
    """Decode the pack onto the session's device and build the tokenizer from the vocabulary."""
    pack = load_pack(pack_file)
    limit = 1 << 30 if session.device.type == "cuda" else 6
    train_photos = [pack.decode(data) for data in pack.photo_train[:limit]]
    test_photos = [pack.decode(data) for data in pack.photo_test[:limit]]
    from .evaluate import square_photos

    return Workshop(
        session,
        make_source(pack.sprites, train_photos, session.device),
        square_photos(test_photos, 192),
        build_tokenizer(template_words()),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.run", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=[*STAGES, "quick"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0], help="one number, or one per stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, default=Path("train/checkpoints"))
    parser.add_argument("--pack", type=Path, default=Path("train/data/pack.npz"))
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU finishes in a minute")
    parser.add_argument("--no-compile", action="store_true", help="start sooner, train slower")
    parser.add_argument(
        "--bank-share", type=float, default=1.0, help="size of the rendered banks relative to full size"
    )
    options = parser.parse_args(arguments)
    stages = list(STAGES) if "quick" in options.stages else options.stages
    minutes = options.minutes if len(options.minutes) == len(stages) else [options.minutes[0]] * len(stages)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tiny = options.tiny or device.type == "cpu"
    scale = (TINY if tiny else FULL).with_banks(options.bank_share)
    scale = replace(scale, compile=scale.compile and not options.no_compile)
    session = TrainingSession(device=device, out=options.out, resume=options.resume, scale=scale)
    configure_torch(session)
    workshop = open_workshop(session, options.pack)
    session.log("start", device=device.type, torch=torch.__version__)
    for stage, share in zip(stages, minutes, strict=True):
        STAGES[stage](workshop, share * 60)
        LOGGER.info("%s done at %.0f s: %s", stage, session.seconds(), session.records[-1])


def configure_torch(session: TrainingSession) -> None:
    """Set fast matmul modes, a larger compile cache limit, and the cache of kernels compiled by earlier runs."""
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = False  # benchmarking costs seconds per new shape
    torch._dynamo.config.cache_size_limit = 32


if __name__ == "__main__":
    main()
