"""Owns the training of the many-step causal model on latents of rendered clips: flow matching under teacher forcing.

Every chunk has its own noise level (diffusion forcing, Chen et al. 2024) and sees clean chunks before it, as when the
engine streams. A share of the windows begins with frames of another clip: what a cut of the prompt looks like, and what
brings a stream back that has wandered off its prompt. Knows nothing of pixels, nor of the few-step student.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.video.compiling import compiled
from pipelines.video.transformer import CausalWanTransformer
from pipelines.video.wan_blocks import BlockHalves, WanBlock
from train.crew import CrewClock
from train.graphs import Replay
from train.muon import Muon
from train.session import Average, Budget, Master, Session, set_rate, trapezoid
from train.video.bank import ClipBank, Windows, draw_windows
from train.video.causal import CHUNK, GRID, SHIFT, WINDOW, VideoNetworks, few_step_levels, make_networks
from train.video.checkpoints import restore_parts, save_parts
from train.video.forcing import (
    Condition,
    ForcedPass,
    TrainingAttention,
    chunk_levels,
    noised,
    velocity_loss,
)

STAGE = "teacher"
PEAK_RATE = 1.5e-3
CUT_SHARE = 0.1
SINGLE_SHARE = 0.25
"""Share of the steps with chunks of one latent."""
SUBJECT_WEIGHT = 2.0
"""Added to the weight of cells that the subject covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """latents: float32 [B, C, F, h, w]; ids: int64 [B, 32]; actions: [B, F, 5]; weight: [B, 1, F, h, w]."""

    latents: Tensor
    ids: Tensor
    actions: Tensor
    weight: Tensor


def as_batch(windows: Windows, chunk: int, *, cut_share: float = CUT_SHARE) -> Batch:
    """Windows of one clip each, some with another clip's frames up to a chunk's boundary.

    Those frames have no loss, nor has a window's first chunk unless the video begins there: nothing says what it
    follows.
    """
    latents, actions = windows.latents, windows.actions
    batch, _, frames = latents.shape[:3]
    device = latents.device
    index = torch.arange(frames, device=device)
    chunks = frames // chunk
    cut = chunk * torch.randint(1, chunks, (batch, 1), device=device)
    cut = torch.where(torch.rand(batch, 1, device=device) < cut_share, cut, torch.zeros_like(cut))
    foreign = index < cut
    latents = torch.where(foreign[:, None, :, None, None], latents.roll(1, 0), latents)
    actions = torch.where(foreign[:, :, None], actions.roll(1, 0), actions)
    begins = windows.begins[:, None] & (cut == 0)
    counted = ~foreign & ((index >= chunk) | begins)
    weight = counted[:, None, :, None, None] * (1 + SUBJECT_WEIGHT * windows.coverage)
    return Batch(latents=latents, ids=windows.ids, actions=actions, weight=weight)


def prepare_transformer(transformer: CausalWanTransformer, *, compile_blocks: bool) -> None:
    """Attention that can be differentiated, and blocks compiled where that is wanted."""
    transformer.attention = TrainingAttention()
    if compile_blocks:
        transformer.halves = BlockHalves(before=compiled(WanBlock.before), after=compiled(WanBlock.after))


class TeacherStep:
    """One captured training step for chunks of `chunk`."""

    def __init__(self, trainer: Trainer, chunk: int) -> None:
        self._trainer, self._chunk = trainer, chunk
        session = trainer.session
        self._pass = ForcedPass(
            trainer.networks.transformer, GRID, frames=session.scale.video_window, chunk=chunk, window=WINDOW
        )
        self.replay = Replay(self._step, session.device)

    def _step(self) -> None:
        trainer, chunk = self._trainer, self._chunk
        session, networks = trainer.session, trainer.networks
        windows = draw_windows(trainer.bank, session.scale.video_batch, session.scale.video_window)
        batch = as_batch(windows, chunk)
        frames = batch.latents.shape[2]
        levels = chunk_levels(batch.latents.shape[0], frames, chunk, shift=SHIFT, steps=trainer.levels)
        noise = torch.randn_like(batch.latents)
        noisy = noised(batch.latents, noise, levels)
        condition = Condition(states=networks.encode(batch.ids), actions=batch.actions.to(session.dtype))
        velocity = self._pass(batch.latents.to(session.dtype), noisy.to(session.dtype), 1000 * levels, condition)
        loss = velocity_loss(velocity, batch.latents, noise, batch.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.master.step(trainer.optimiser)
        trainer.total.add_(loss.detach())


class Trainer:
    """Networks, optimiser and average of the teacher's training."""

    def __init__(self, session: Session, bank: ClipBank, networks: VideoNetworks) -> None:
        self.session, self.bank, self.networks = session, bank, networks
        self.levels = few_step_levels(session.device)
        self.master = Master(*networks.modules, dtype=session.dtype, crew=session.crew)
        table = networks.text.get_input_embeddings().weight
        tables = {id(full) for full, low in zip(self.master.full, self.master.low, strict=True) if low is table}
        self.optimiser = Muon(self.master.full, tables, PEAK_RATE)
        self.average = Average(self.master.full, decay=0.9985)
        self.total = torch.zeros((), device=session.device)
        session.seed_draws()
        set_rate(self.optimiser, 0.0)
        self.steps = {chunk: TeacherStep(self, chunk) for chunk in (CHUNK, 1)}
        self.total.zero_()

    def save(self) -> None:
        """The averaged weights as they stand."""
        names = ("transformer", "text")
        save_parts(self.session, STAGE, **dict(zip(names, self.master.named(self.average.values), strict=True)))


def load_teacher(session: Session, vocabulary: int) -> VideoNetworks:
    """The networks of this run's or resume's teacher, else untrained ones."""
    networks = make_networks(session.device, vocabulary=vocabulary, seed=session.seed)
    restore_parts(session, STAGE, transformer=networks.transformer, text=networks.text)
    return networks


def train_teacher(session: Session, bank: ClipBank, vocabulary: int, seconds: float) -> VideoNetworks:
    """Train for seconds; save the averages; return the networks with them."""
    networks = load_teacher(session, vocabulary)
    prepare_transformer(networks.transformer, compile_blocks=session.scale.compile)
    trainer = Trainer(session, bank, networks)
    rng, every = random.Random(session.seed), 4 * session.scale.log_every
    budget, running = CrewClock(session.crew, session.device, Budget(seconds)), True
    while running:
        set_rate(trainer.optimiser, session.rate * PEAK_RATE * trapezoid(budget.steps, budget.fraction()))
        trainer.steps[1 if rng.random() < SINGLE_SHARE else CHUNK].replay()
        trainer.average.update()
        running = budget.tick()
        if budget.steps % every == 0 or not running:
            mean = float(trainer.total) / ((budget.steps - 1) % every + 1)
            session.log(STAGE, step=float(budget.steps), loss=mean, rate=budget.rate)
            trainer.total.zero_()
        if budget.budget.due():
            trainer.save()
    trainer.average.swap()
    trainer.master.release()
    save_parts(session, STAGE, transformer=networks.transformer, text=networks.text)
    return networks
