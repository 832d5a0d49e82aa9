"""mini-video's training steps on CUDA: captured and compiled steps equal plain ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from train.session import TINY, TrainingSession
from train.video.bank import ClipBank
from train.video.causal import CHUNK, GRID, WINDOW, make_networks
from train.video.distill import Game, make_players, train_scorer
from train.video.forcing import ForcedPass, ForcingCondition, forced_frames
from train.video.teacher import train_teacher
from train.video.words import STAGE as WORDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda")
VOCABULARY = 40


@pytest.fixture
def session(tmp_path: Path) -> TrainingSession:
    return TrainingSession(device=CUDA, out=tmp_path, resume=tmp_path / "none", scale=replace(TINY, compile=True))


@pytest.fixture
def bank() -> ClipBank:
    torch.manual_seed(0)
    return ClipBank(
        latents=torch.randn(8, 16, 12, 16, 16, device=CUDA).half(),
        ids=torch.randint(1, VOCABULARY, (8, 4, 32), device=CUDA).short(),
        actions=torch.zeros(8, 12, 5, device=CUDA).half(),
        coverage=torch.zeros(8, 1, 12, 16, 16, dtype=torch.uint8, device=CUDA),
        spec=torch.zeros(8, 5, dtype=torch.int64, device=CUDA),
        empty_ids=torch.tensor([1] + [0] * 31, device=CUDA),
    )


@pytest.mark.parametrize("chunk", [CHUNK, 1])
def test_flex_attention_sees_what_the_dense_mask_shows(chunk: int) -> None:
    transformer = make_networks(CUDA, vocabulary=VOCABULARY, seed=1).transformer
    transformer.requires_grad_(False).to(torch.bfloat16)
    torch.manual_seed(2)
    clean, noisy = torch.randn(2, 2, 16, WINDOW, 16, 16, device=CUDA, dtype=torch.bfloat16)
    times = 1000 * torch.rand(2, WINDOW, device=CUDA)
    condition = ForcingCondition(
        states=torch.randn(2, 32, 128, device=CUDA, dtype=torch.bfloat16),
        actions=torch.zeros(2, WINDOW, 5, device=CUDA, dtype=torch.bfloat16),
    )
    forced = ForcedPass(transformer, GRID, frames=WINDOW, chunk=chunk, window=WINDOW)
    blocks = forced(clean, noisy, times, condition).float()
    tokens = GRID[0] * GRID[1]
    allowed = forced_frames(WINDOW, chunk, WINDOW).to(CUDA)
    forced._mask = allowed.repeat_interleave(tokens, 0).repeat_interleave(tokens, 1)
    dense = forced(clean, noisy, times, condition).float()
    assert (blocks - dense).abs().max() < 0.05 * dense.abs().max()


def test_every_stage_is_captured_and_learns_on_the_device(session: TrainingSession, bank: ClipBank) -> None:
    session.save(WORDS, text=make_networks(CUDA, vocabulary=VOCABULARY, seed=1).text)
    networks = train_teacher(session, bank, bank, VOCABULARY, 4.0)
    assert all(parameter.isfinite().all() for parameter in networks.transformer.parameters())
    train_scorer(session, bank, VOCABULARY, 1.0)
    losses = [float(record["opening_loss"]) for record in session.records if "opening_loss" in record]
    assert losses[-1] < losses[0]
    game = Game(session, bank, make_players(session, VOCABULARY))
    before = [p.detach().clone() for p in game.student.full]
    game.set_rates(1.0)
    for step in range(3):
        game.roll(step)
        game.on_streams()
        game.on_clips()
        game.finish()
    assert all(p.isfinite().all() for p in game.student.full)
    assert not any(torch.equal(a, b) for a, b in zip(before, game.student.full, strict=True))
    assert game.pool.age.max() >= 3 * CHUNK
