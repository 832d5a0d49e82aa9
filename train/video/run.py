"""Owns the order of mini-video's training stages and their command line.

python -m train.video.run STAGE... --minutes M... --out DIR --resume DIR
torchrun --nproc-per-node N -m train.video.run ...    # on several GPUs of one host

Stages: autoencoder, decoders, judge, words, teacher, scorer, student, actions, scores; quick runs all at a tiny size.
Each continues from the files of --resume. The clip banks are rendered and encoded on first use and shared by later
stages of the same process; --minutes follows the order of the stages and excludes this time. "teacher+scorer" runs
stages concurrently, each on one process with full-size steps, which is faster for small networks.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from train.bank import SourceMaterial, make_source
from train.crew import ALONE, join
from train.pack import load_pack
from train.run import configure_torch
from train.session import FULL, TINY, Scale, TrainingSession
from train.vocabulary_world import PLACES, STYLES

from .autoencoder import measured_clips, train_autoencoder, train_decoders
from .bank import BankSize, ClipBank, clip_bank, long_clips, openings
from .causal import CHUNK
from .codecs import STAGE, load_codecs, measure_codecs
from .distill import train_scorer, train_student
from .judge import train_judge
from .sheets import codec_sheet
from .steering import train_actions
from .teacher import train_teacher
from .tokenizer import build_tokenizer
from .words import train_words

LOGGER = logging.getLogger("train.video")
TINY_PHOTOS = 6


@dataclass(slots=True)
class Workshop:
    """One run's session and what its stages share; the clip bank is built on first use."""

    session: TrainingSession
    source: SourceMaterial
    tokenizer: Any
    _banks: dict[BankSize, ClipBank] = field(default_factory=dict)

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return len(self.tokenizer)

    def bank(self, size: BankSize | None = None) -> ClipBank:
        """Clips encoded by the current stock autoencoder; None: the long clips."""
        size = size or long_clips(self.session.scale)
        if size not in self._banks:
            encode = load_codecs(self.session).encode()
            self._banks[size] = clip_bank(self.session, self.source, encode, self.tokenizer, size)
        return self._banks[size]

    def autoencoder(self, seconds: float) -> None:
        """Both autoencoders; drops banks of older latents."""
        train_autoencoder(self.session, self.source, seconds)
        self._banks.clear()

    def decoders(self, seconds: float) -> None:
        """Both decoders and the tiny encoder, on unchanged latents."""
        train_decoders(self.session, self.source, seconds)

    def judge(self, seconds: float) -> None:
        """The classifier that judges frames of clips, trained independently of the generator."""
        sizes = (self.source.sprites.shape[0] + 1, len(PLACES) + 1, len(STYLES))
        train_judge(self.session, self.source, sizes, seconds)

    def words(self, seconds: float) -> None:
        """The text encoder, on captions only."""
        train_words(self.session, self.tokenizer, self.source.sprites.shape[0], seconds)

    def teacher(self, seconds: float) -> None:
        """The causal many-step model, with the text encoder."""
        beginnings = self.bank(openings(self.session.scale, CHUNK))
        train_teacher(self.session, self.bank(), beginnings, self.vocabulary, seconds)

    def scorer(self, seconds: float) -> None:
        """The network that scores whole windows for the student."""
        train_scorer(self.session, self.bank(), self.vocabulary, seconds)

    def student(self, seconds: float) -> None:
        """The few-step model, on its own rollouts."""
        train_student(self.session, self.bank(), self.vocabulary, seconds)

    def actions(self, seconds: float) -> None:
        """The student's action embedder only."""
        train_actions(self.session, self.bank(), self.vocabulary, seconds)

    def scores(self, seconds: float) -> None:
        """Reconstruction of held-out clips by the autoencoders, and a sheet of them; ignores the time budget."""
        clips = measured_clips(self.session, self.source)
        codecs = load_codecs(self.session)
        self.session.log("scores", **measure_codecs(codecs, clips))
        if not self.session.crew.rank:
            codec_sheet(codecs, clips[:8], self.session.out / f"{STAGE}.jpg")


STAGES: dict[str, Callable[[Workshop, float], None]] = {
    "autoencoder": Workshop.autoencoder,
    "decoders": Workshop.decoders,
    "judge": Workshop.judge,
    "words": Workshop.words,
    "teacher": Workshop.teacher,
    "scorer": Workshop.scorer,
    "student": Workshop.student,
    "actions": Workshop.actions,
    "scores": Workshop.scores,
}


def named_stages(name: str) -> list[str]:
    """The stages of "teacher" or "teacher+scorer". Raises argparse.ArgumentTypeError with the existing names."""
    names = name.split("+")
    if name != "quick" and not all(part in STAGES for part in names):
        raise argparse.ArgumentTypeError(f"{name!r} is not a stage or stages joined by '+': {', '.join(STAGES)}")
    return names


def run_stages(workshop: Workshop, names: Sequence[str], scale: Scale, seconds: Sequence[float]) -> None:
    """Run one stage on the whole crew, or several concurrently, one per process in order, for the given seconds; the
    latter render the long clips first, so that no process waits for another later.

    scale: of a single process. Raises ValueError if the number of concurrent stages differs from that of processes.
    """
    session, crew = workshop.session, workshop.session.crew
    if len(names) == 1:
        STAGES[names[0]](workshop, seconds[0])
        return
    if len(names) != crew.size:
        raise ValueError(f"{'+'.join(names)} needs {len(names)} processes, not {crew.size}: use torchrun")
    workshop.session = replace(session, crew=ALONE, seed=session.seed + crew.rank, scale=scale)
    workshop.bank()
    STAGES[names[crew.rank]](workshop, seconds[crew.rank])
    workshop.session = session


def open_workshop(session: TrainingSession, pack_file: Path) -> Workshop:
    """Decode the pack onto the session's device and build the tokenizer from the vocabulary."""
    pack = load_pack(pack_file)
    limit = len(pack.photo_train) if session.device.type == "cuda" else TINY_PHOTOS
    photos = [pack.decode(data) for data in pack.photo_train[:limit]]
    return Workshop(session, make_source(pack.sprites, photos, session.device), build_tokenizer())


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the stages named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.video.run", description=__doc__)
    parser.add_argument("stages", nargs="+", type=named_stages, help="quick: all; one+other: concurrently")
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0], help="one number, or one per stage")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, default=Path("train/checkpoints"))
    parser.add_argument("--pack", type=Path, default=Path("train/data/pack.npz"))
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU finishes in a minute")
    parser.add_argument("--no-compile", action="store_true", help="start sooner, train slower")
    parser.add_argument("--bank-share", type=float, default=1.0, help="size of the banks relative to full size")
    parser.add_argument("--rate", type=float, default=1.0, help="multiplies the learning rates, for trials")
    parser.add_argument("--seed", type=int, help="random seed of clips and training")
    options = parser.parse_args(arguments)
    quick = ["quick"] in options.stages
    stages = [[name] for name in STAGES] if quick else options.stages
    count = sum(map(len, stages))
    minutes = iter(options.minutes if len(options.minutes) == count else [options.minutes[0]] * count)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    crew, device = join(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    scale = TINY if options.tiny or quick or device.type == "cpu" else FULL
    if options.bank_share != 1:
        scale = scale.with_banks(options.bank_share)
    scale = replace(scale, compile=scale.compile and not options.no_compile)
    session = TrainingSession(
        device=device, out=options.out, resume=options.resume, scale=scale.for_processes(crew.size), crew=crew,
        rate=options.rate, **({} if options.seed is None else {"seed": options.seed}),
    )  # fmt: skip
    configure_torch(session)
    workshop = open_workshop(session, options.pack)
    session.log("start", device=device.type, torch=torch.__version__, processes=float(crew.size))
    for names in stages:
        run_stages(workshop, names, scale, [60 * next(minutes) for _ in names])
        crew.wait()
        LOGGER.info("%s done at %.0f s: %s", "+".join(names), session.seconds(), session.records[-1:])
    crew.leave()


if __name__ == "__main__":
    main()
