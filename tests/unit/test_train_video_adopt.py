"""Shipped files become checkpoints again, to the bit; concurrent stages are named and refused correctly."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.video_options import MODEL
from train.session import TINY, TrainingSession
from train.video.adopt import adopt
from train.video.checkpoints import read_parts
from train.video.publish import gains_of, publish
from train.video.run import Workshop, named_stages, run_stages


def test_what_ships_comes_back_from_checkpoints_to_the_bit(tmp_path: Path) -> None:
    adopt(MODEL, tmp_path / "checkpoints", ["student", "teacher"])
    gains = gains_of(MODEL)
    assert gains is not None
    publish(tmp_path / "checkpoints", tmp_path / "model", gains=gains)
    files = sorted(file.relative_to(MODEL) for file in MODEL.rglob("*.safetensors"))
    assert len(files) == 5
    for file in files:
        assert (tmp_path / "model" / file).read_bytes() == (MODEL / file).read_bytes(), file
    for config in (Path("vae", "config.json"), Path("actions", "config.json")):
        assert (tmp_path / "model" / config).read_text() == (MODEL / config).read_text()
    with pytest.raises(ValueError, match=r"has action gains: give --gains 1.25 1.2"):
        publish(tmp_path / "checkpoints", tmp_path / "model")


def test_a_teacher_alone_can_be_adopted(tmp_path: Path) -> None:
    adopt(MODEL, tmp_path, ["teacher"])
    assert read_parts(tmp_path, "teacher")
    assert not read_parts(tmp_path, "student")


def test_stages_side_by_side_are_named_and_need_a_process_each(tmp_path: Path) -> None:
    assert named_stages("teacher+scorer") == ["teacher", "scorer"]
    with pytest.raises(argparse.ArgumentTypeError, match="'teacher\\+nothing' is not a stage"):
        named_stages("teacher+nothing")
    session = TrainingSession(device=torch.device("cpu"), out=tmp_path, resume=tmp_path, scale=TINY)
    nothing: Any = None
    with pytest.raises(ValueError, match=r"needs 2 processes, not 1: use torchrun"):
        run_stages(Workshop(session, nothing, nothing), ["teacher", "scorer"], TINY, [1, 1])
