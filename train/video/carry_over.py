"""Transfers the effect of distillation to a teacher that has been trained further.

python -m train.video.carry_over --old DIR --new DIR --share 0.6 --out DIR

student' = new teacher + share * (student - old teacher), weight by weight (task arithmetic, Ilharco et al. 2023): an
immediate few-step student, from which distillation continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from train.session import TINY, TrainingSession

from .causal import make_networks
from .checkpoints import require_parts, save_parts
from .distill import STUDENT
from .teacher import STAGE as TEACHER
from .tokenizer import build_tokenizer

SHARE = 0.6


def weights_of(folder: Path, stage: str) -> dict[str, Tensor]:
    """The transformer of a stage, float32. Raises FileNotFoundError if the stage has not run."""
    session = TrainingSession(device=torch.device("cpu"), out=folder, resume=folder, scale=TINY)
    networks = make_networks(session.device, vocabulary=len(build_tokenizer()), seed=session.seed)
    require_parts(session, stage, transformer=networks.transformer)
    return dict(networks.transformer.state_dict())


def carried(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], student: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """new + share * (student - old), for tensors of equal names and shapes."""
    return {name: value + share * (student[name] - old[name]) for name, value in new.items()}


def carry_over(old: Path, new: Path, out: Path, share: float) -> None:
    """Write out/student-*.safetensors. old: folder of the student and its teacher; new: of the newer teacher."""
    session = TrainingSession(device=torch.device("cpu"), out=out, resume=out, scale=TINY)
    networks = make_networks(session.device, vocabulary=len(build_tokenizer()), seed=session.seed)
    state = carried(weights_of(old, TEACHER), weights_of(new, TEACHER), weights_of(old, STUDENT), share)
    networks.transformer.load_state_dict(state)
    out.mkdir(parents=True, exist_ok=True)
    save_parts(session, STUDENT, transformer=networks.transformer)


def main(arguments: Sequence[str] | None = None) -> None:
    """Carry over from the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.video.carry_over", description=__doc__)
    parser.add_argument("--old", type=Path, required=True, help="checkpoints of the student and its teacher")
    parser.add_argument("--new", type=Path, required=True, help="checkpoints of the newer teacher")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--share", type=float, default=SHARE)
    options = parser.parse_args(arguments)
    carry_over(options.old, options.new, options.out, options.share)


if __name__ == "__main__":
    main()
