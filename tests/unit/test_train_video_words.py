"""Pretraining of the text encoder: a caption's content is predicted from any of its tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from train.budget import TimeBudget
from train.session import TINY, TrainingSession
from train.video import words
from train.video.tokenizer import build_tokenizer
from train.video.words import STAGE, captions_of, train_words


def make_session(folder: Path) -> TrainingSession:
    scale = replace(TINY, video_captions=256)
    return TrainingSession(device=torch.device("cpu"), out=folder, resume=folder / "none", scale=scale)


def test_truth_counts_from_none(tmp_path: Path) -> None:
    ids, truth = captions_of(make_session(tmp_path), build_tokenizer(), 200, 5, 3)
    assert ids.shape == (200, 32)
    assert truth.shape == (200, 5)
    assert int(truth.min()) == 0
    assert 1 <= int(truth[:, 0].max()) <= 5


def test_the_loss_falls_and_the_encoder_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "BATCH", 16)
    torch.manual_seed(0)
    session = make_session(tmp_path)
    session.rate = 100.0  # a budget without time trains at a fiftieth of the rate
    with monkeypatch.context() as patch:
        patch.setattr(words, "TimeBudget", partial(TimeBudget, min_steps=40))
        trained = train_words(session, build_tokenizer(), 3, 0.0)
    losses = [float(record["loss"]) for record in session.records if "loss" in record]
    assert losses[-1] < 0.8 * losses[0]
    again = make_session(tmp_path / "again")
    (tmp_path / "again").mkdir()
    again.resume = tmp_path
    once_more = train_words(again, build_tokenizer(), 3, 0.0)
    assert (tmp_path / f"{STAGE}.safetensors").is_file()
    near = [torch.allclose(a, b, atol=0.02) for a, b in
            zip(trained.text.parameters(), once_more.text.parameters(), strict=True)]  # fmt: skip
    assert all(near)
