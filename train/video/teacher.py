"""Owns the training of the many-step causal model on latents of rendered clips: flow matching under teacher forcing.

Openings come first, single pictures and first chunks, at high noise: there only the text determines what to draw.
Within a stream a chunk sees the chunks before it, which determine nearly everything: 7,000 steps only on windows of
five chunks gave a model that followed its own past and drew 9 % of the requested subjects. Then every chunk has its own
noise level (diffusion forcing, Chen et al. 2024) and sees clean chunks before it, as when the engine streams. A share
of these windows begins with frames of another clip, as after a prompt cut, which also brings streams back that have
drifted from their prompt. Independent of pixels and of the few-step student.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from train.budget import TimeBudget
from train.crew import CrewClock
from train.graphs import Replay
from train.muon import Muon
from train.session import Average, Master, TrainingSession, set_rate, trapezoid

from .bank import ClipBank, Windows, draw_windows
from .causal import CHUNK, GRID, SHIFT, WINDOW, TrainingNetworks, few_step_levels, make_networks
from .checkpoints import restore_parts, save_parts
from .forcing import (
    ForcedPass,
    ForcingCondition,
    JointPass,
    chunk_levels,
    noised,
    shifted_levels,
    training_execution,
    velocity_loss,
)
from .words import STAGE as WORDS

STAGE = "teacher"
PEAK_RATE = 1.5e-3
CUT_SHARE = 0.25
BEGIN_SHARE = 0.35
"""Share of the windows that begin at the start of a clip."""
OPENINGS_UNTIL, CONTINUED_OPENINGS_UNTIL = 0.4, 0.2
"""Share of the budget for openings only, alternating pictures and chunks; later some steps are still openings. Not
needed for a resumed teacher, which knows its words.
"""
OPENING_SHARE, SINGLE_SHARE = 0.35, 0.15
"""Shares of the later steps: openings, and windows in chunks of one latent."""
NOISE_SHARE = 0.3
"""Share of the openings that are pure noise."""
PICTURES, CHUNKS = 8, 3
"""Batch size of openings relative to that of windows: pictures, and chunks."""
SUBJECT_WEIGHT = 2.0
"""Extra loss weight of cells that the subject covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """latents: float32 [B, C, F, h, w]; ids: int64 [B, 32]; actions: [B, F, 5]; coverage: [B, 1, F, h, w] in 0..1,
    where subjects are; counted: bool [B, F], the frames with a loss; follows: bool [B, F], the frames whose chunk has a
    preceding chunk of the same clip in the window.
    """

    latents: Tensor
    ids: Tensor
    actions: Tensor
    coverage: Tensor
    counted: Tensor
    follows: Tensor

    @property
    def weight(self) -> Tensor:
        """Loss weight [B, 1, F, h, w]."""
        return self.counted[:, None, :, None, None] * subject_weight(self.coverage)


def subject_weight(coverage: Tensor) -> Tensor:
    """Loss weight: higher where the subject covers a cell. coverage: in 0..1, of any shape."""
    return 1 + SUBJECT_WEIGHT * coverage


def as_batch(windows: Windows, chunk: int, *, cut_share: float = CUT_SHARE) -> Batch:
    """Windows of one clip each, some with another clip's frames up to a chunk boundary.

    Those frames have no loss, nor has a window's first chunk unless the video begins there: its past is unknown.
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
    coverage = torch.where(foreign[:, None, :, None, None], windows.coverage.roll(1, 0), windows.coverage)
    begins = windows.begins[:, None] & (cut == 0)
    counted = ~foreign & ((index >= chunk) | begins)
    follows = index >= cut + chunk
    return Batch(latents=latents, ids=windows.ids, actions=actions, coverage=coverage, counted=counted, follows=follows)


class TeacherStep:
    """One captured training step for chunks of `chunk`."""

    def __init__(self, trainer: Trainer, chunk: int) -> None:
        self._trainer, self._chunk = trainer, chunk
        session = trainer.session
        self._pass = ForcedPass(
            trainer.networks.transformer,
            GRID,
            frames=session.scale.video_window,
            chunk=chunk,
            window=WINDOW,
            execution=training_execution(compile_blocks=session.scale.compile),
        )
        self.replay = Replay(self._step, session.device)

    def _step(self) -> None:
        trainer, chunk = self._trainer, self._chunk
        session = trainer.session
        windows = draw_windows(
            trainer.bank, session.scale.video_batch, session.scale.video_window, begin_share=BEGIN_SHARE
        )
        batch = as_batch(windows, chunk)
        frames = batch.latents.shape[2]
        levels = chunk_levels(batch.latents.shape[0], frames, chunk, shift=SHIFT, steps=trainer.levels)
        noise = torch.randn_like(batch.latents)
        noisy = noised(batch.latents, noise, levels)
        condition = ForcingCondition(states=trainer.encode(batch.ids), actions=batch.actions.to(session.dtype))
        velocity = self._pass(batch.latents.to(session.dtype), noisy.to(session.dtype), 1000 * levels, condition)
        loss = velocity_loss(velocity, batch.latents, noise, batch.weight)
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.master.step(trainer.optimiser)
        trainer.total.add_(loss.detach())


class OpeningStep:
    """One captured training step on the first `frames` latents of clips, at one noise level each, mostly high."""

    def __init__(self, trainer: Trainer, frames: int, clips: int) -> None:
        self._trainer, self._frames, self._clips = trainer, frames, clips
        execution = training_execution(compile_blocks=trainer.session.scale.compile)
        self._pass = JointPass(trainer.networks.transformer, GRID, frames=frames, execution=execution)
        self.replay = Replay(self._step, trainer.session.device)

    def _step(self) -> None:
        trainer, frames = self._trainer, self._frames
        session = trainer.session
        windows = draw_windows(trainer.openings, self._clips, frames, begin_share=1.0)
        levels = shifted_levels(torch.rand(self._clips, 1, device=session.device), SHIFT)
        pure = torch.rand(self._clips, 1, device=session.device) < NOISE_SHARE
        levels = torch.where(pure, torch.ones_like(levels), levels).expand(-1, frames)
        noise = torch.randn_like(windows.latents)
        noisy = noised(windows.latents, noise, levels)
        condition = ForcingCondition(states=trainer.encode(windows.ids), actions=windows.actions.to(session.dtype))
        velocity = self._pass(noisy.to(session.dtype), 1000 * levels, condition)
        loss = velocity_loss(velocity, windows.latents, noise, subject_weight(windows.coverage))
        loss.backward()  # type: ignore[no-untyped-call]
        trainer.master.step(trainer.optimiser)
        trainer.opening_total.add_(loss.detach())


class Trainer:
    """Networks, optimiser and average of the teacher's training.

    reads: train the text encoder too; otherwise it is frozen.
    """

    def __init__(
        self, session: TrainingSession, bank: ClipBank, openings: ClipBank, networks: TrainingNetworks, *, reads: bool
    ) -> None:
        self.session, self.bank, self.openings, self.networks = session, bank, openings, networks
        self.levels = few_step_levels(session.device)
        self.reads = reads
        networks.text.requires_grad_(reads)
        learning = networks.modules if reads else (networks.transformer,)
        self.master = Master(*learning, dtype=session.dtype, crew=session.crew)
        table = networks.text.get_input_embeddings().weight
        tables = {id(full) for full, low in zip(self.master.full, self.master.low, strict=True) if low is table}
        self.optimiser = Muon(self.master.full, tables, PEAK_RATE)
        self.average = Average(self.master.full, decay=0.9985)
        self.total, self.opening_total = torch.zeros(2, device=session.device).unbind()
        session.seed_draws()
        set_rate(self.optimiser, 0.0)
        clips = session.scale.video_batch
        self.steps: dict[str, OpeningStep | TeacherStep] = {
            "picture": OpeningStep(self, 1, PICTURES * clips),
            "opening": OpeningStep(self, CHUNK, CHUNKS * clips),
            "chunks": TeacherStep(self, CHUNK),
            "singles": TeacherStep(self, 1),
        }
        self.total.zero_()
        self.opening_total.zero_()

    def encode(self, ids: Tensor) -> Tensor:
        """Text states [B, 32, 128] of token ids int64 [B, 32]."""
        with torch.set_grad_enabled(self.reads):
            return self.networks.encode(ids).to(self.session.dtype)

    def save(self) -> None:
        """Save the current averaged weights."""
        transformer, *text = self.master.named(self.average.values)
        save_parts(self.session, STAGE, transformer=transformer, text=text[0] if text else self.networks.text)

    def finish(self) -> None:
        """Put the averaged weights into the modules, in float32."""
        self.average.swap()
        self.master.release()


def load_teacher(session: TrainingSession, vocabulary: int) -> tuple[TrainingNetworks, bool]:
    """(networks of this run's or the resumed teacher, True), else (untrained ones with the text encoder of stage words,
    False).
    """
    networks = make_networks(session.device, vocabulary=vocabulary, seed=session.seed)
    continued = restore_parts(session, STAGE, transformer=networks.transformer, text=networks.text)
    if not continued:
        session.require(WORDS, text=networks.text)
    return networks, continued


def kind_of_step(fraction: float, step: int, rng: random.Random, openings_until: float = OPENINGS_UNTIL) -> str:
    """The kind of the next step, by the share of the budget spent."""
    if fraction < openings_until:
        return "opening" if step % 2 else "picture"
    drawn = rng.random()
    if drawn < OPENING_SHARE:
        return "opening"
    return "singles" if drawn < OPENING_SHARE + SINGLE_SHARE else "chunks"


def train_teacher(
    session: TrainingSession, bank: ClipBank, openings: ClipBank, vocabulary: int, seconds: float
) -> TrainingNetworks:
    """Train for seconds; save the averaged weights; return the networks with them.

    When resumed, the text encoder is frozen: scorers and students were trained on its outputs.
    """
    networks, continued = load_teacher(session, vocabulary)
    trainer = Trainer(session, bank, openings, networks, reads=not continued)
    rng, every = random.Random(session.seed), 4 * session.scale.log_every
    until = CONTINUED_OPENINGS_UNTIL if continued else OPENINGS_UNTIL
    budget, running = CrewClock(session.crew, session.device, TimeBudget(seconds)), True
    counted = {"opening": 0, "window": 0}
    while running:
        set_rate(trainer.optimiser, session.rate * PEAK_RATE * trapezoid(budget.steps, budget.fraction()))
        kind = kind_of_step(budget.fraction(), budget.steps, rng, until)
        trainer.steps[kind].replay()
        counted["opening" if kind in ("picture", "opening") else "window"] += 1
        trainer.average.update()
        running = budget.tick()
        if budget.steps % every == 0 or not running:
            sums = {"opening": trainer.opening_total, "window": trainer.total}
            losses = {f"{name}_loss": float(sums[name]) / n for name, n in counted.items() if n}
            session.log(STAGE, step=float(budget.steps), rate=budget.rate, **losses)
            for name, total in sums.items():
                total.zero_()
                counted[name] = 0
        if budget.budget.due():
            trainer.save()
    trainer.finish()
    save_parts(session, STAGE, transformer=networks.transformer, text=networks.text)
    return networks
