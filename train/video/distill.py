"""Owns the distillation into a few steps on the student's own streams. Independent of pixels.

Distribution matching (Yin et al. 2024, DMD2) on windows of a stream whose past the student has generated itself (Huang
et al. 2025, Self-Forcing): the newest chunk follows the difference between two scores of the whole noised window, or of
the chunk only: the scorer's, trained on real clips and guided, and the fake network's, trained on the student's
windows. As the past is noised with it or omitted, drift is corrected. Every second update noises real chunks instead,
with regression to the real ones: past, caption and actions determine the motion, and a camera's picture is preserved.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from train.budget import TimeBudget
from train.crew import CrewClock
from train.graphs import Replay
from train.muon import Muon
from train.session import Average, Master, TrainingSession, adamw, set_rate, trapezoid, warm_cosine

from .bank import ClipBank, draw_windows
from .causal import CHUNK, GRID, SHIFT, SINK, WINDOW, TrainingNetworks, few_step_levels, make_networks
from .checkpoints import require_parts, restore_parts, save_parts
from .forcing import (
    ForcedPass,
    ForcingCondition,
    JointPass,
    clean_of,
    noised,
    shifted_levels,
    training_execution,
    velocity_loss,
)
from .loop import Course, train_for
from .rollouts import Pool
from .teacher import STAGE as TEACHER
from .teacher import Batch, as_batch, subject_weight

SCORER, STUDENT, FAKE = "scorer", "student", "fake"
SCORER_RATE, STUDENT_RATE, FAKE_RATE = 1e-3, 1.5e-4, 4.5e-4
SCORER_COURSE = Course(
    stage=SCORER, optimiser=lambda full: Muon(full, set(), 0.0), peak=SCORER_RATE, factor=trapezoid, decay=0.998
)
GUIDANCE = 1.5
"""Guidance away from the scorer's output without prompt and actions. With 3 the student diverged within 2,000
iterations: at high noise levels guidance overshoots, and unlike in sampling no lower level corrects it.
"""
FAKE_UPDATES = 2
SCORE_RANGE = (0.02, 0.98)
LOW_LEVELS = 2
"""Number of few-step levels, from the last, used to noise real chunks that do not continue an earlier one."""
INDEPENDENT_SHARE = 0.2
"""Share of the scorer's windows with a level per chunk instead of one for all."""
ALONE_SHARE = 0.4
"""Share of the windows of which only the newest chunk is scored and visible: next to a drifted past, further drift
looks right.
"""


def _levels(batch: int, frames: int, device: torch.device) -> Tensor:
    """One level per window, [B, F]."""
    low, high = SCORE_RANGE
    raw = low + (high - low) * torch.rand(batch, 1, device=device)
    return shifted_levels(raw, SHIFT).expand(-1, frames)


def young_streams(batch: Batch, begins: Tensor) -> tuple[Batch, Tensor]:
    """Keep only the first chunks of windows that begin a video (bool [B]), moved to the window's end: what a stream's
    window holds before it is full.

    Returns the windows and which of their frames are present, bool [B, F].
    """
    rows, frames = batch.latents.shape[0], batch.latents.shape[2]
    index = torch.arange(frames, device=begins.device)
    length = CHUNK * torch.randint(1, frames // CHUNK + 1, (rows, 1), device=begins.device)
    length = torch.where(begins[:, None], length, torch.full_like(length, frames))
    source = (index - (frames - length)).clamp(min=0)

    def moved(of_frames: Tensor, dim: int) -> Tensor:
        shape = [rows if i == 0 else frames if i == dim else 1 for i in range(of_frames.dim())]
        return of_frames.gather(dim, source.view(shape).expand_as(of_frames))

    batch = replace(
        batch,
        latents=moved(batch.latents, 2),
        actions=moved(batch.actions, 1),
        coverage=moved(batch.coverage, 2),
        counted=moved(batch.counted, 1),
        follows=moved(batch.follows, 1),
    )
    return batch, index >= frames - length


def _seen(present: Tensor) -> Tensor:
    """bool [B, F]: all present frames, or in some windows only the newest chunk."""
    newest = torch.arange(present.shape[1], device=present.device) >= present.shape[1] - CHUNK
    alone = torch.rand(present.shape[0], 1, device=present.device) < ALONE_SHARE
    return present & (newest | ~alone)


def train_scorer(session: TrainingSession, bank: ClipBank, vocabulary: int, seconds: float) -> TrainingNetworks:
    """Train the scorer from the teacher: scores of whole noised windows with full attention. Saved as scorer."""
    networks = make_networks(session.device, vocabulary=vocabulary, seed=session.seed)
    require_parts(session, TEACHER, transformer=networks.transformer, text=networks.text)
    restore_parts(session, SCORER, transformer=networks.transformer)
    networks.text.requires_grad_(False).to(session.dtype)
    execution = training_execution(compile_blocks=session.scale.compile)
    joint = JointPass(networks.transformer, GRID, frames=WINDOW, execution=execution)

    def loss() -> Tensor:
        windows = draw_windows(bank, session.scale.video_batch, WINDOW, sink=SINK)
        batch, present = young_streams(as_batch(windows, CHUNK), windows.begins)
        latents, present = batch.latents, _seen(present)
        rows = latents.shape[0]
        levels = _levels(rows, WINDOW, session.device)
        per_chunk = _levels(rows * WINDOW // CHUNK, CHUNK, session.device).reshape(rows, WINDOW)
        levels = torch.where(torch.rand(rows, 1, device=session.device) < INDEPENDENT_SHARE, per_chunk, levels)
        noise = torch.randn_like(latents)
        with torch.no_grad():
            states = networks.encode(batch.ids)
        condition = ForcingCondition(states=states, actions=batch.actions.to(session.dtype))
        velocity = joint(noised(latents, noise, levels).to(session.dtype), 1000 * levels, condition, present)
        weight = present[:, None, :, None, None] * subject_weight(batch.coverage)
        return velocity_loss(velocity, latents, noise, weight)

    train_for(session, SCORER_COURSE, [networks.transformer], loss, seconds)
    save_parts(session, SCORER, transformer=networks.transformer)
    return networks


@dataclass(slots=True, kw_only=True)
class Players:
    """student, fake: trained; scorer: frozen, its text encoder serves all three."""

    student: TrainingNetworks
    fake: TrainingNetworks
    scorer: TrainingNetworks


def make_players(session: TrainingSession, vocabulary: int) -> Players:
    """Scorer from its checkpoint; student and fake from theirs, else from teacher and scorer."""
    student, fake, scorer = (make_networks(session.device, vocabulary=vocabulary, seed=session.seed) for _ in range(3))
    require_parts(session, TEACHER, transformer=student.transformer, text=scorer.text)
    require_parts(session, SCORER, transformer=scorer.transformer)
    require_parts(session, SCORER, transformer=fake.transformer)
    restore_parts(session, STUDENT, transformer=student.transformer)
    restore_parts(session, FAKE, transformer=fake.transformer)
    for module in scorer.modules:
        module.requires_grad_(False).to(session.dtype)
    return Players(student=student, fake=fake, scorer=scorer)


class Game:
    """One iteration over static tensors, captured in parts: a chunk's passes, the update on streams, that on clips."""

    def __init__(self, session: TrainingSession, bank: ClipBank, players: Players) -> None:
        self.session, self.bank, self.players = session, bank, players
        device, dtype = session.device, session.dtype
        self.student = Master(players.student.transformer, dtype=dtype, crew=session.crew)
        self.fake = Master(players.fake.transformer, dtype=dtype, crew=session.crew)
        self.student_optimiser = adamw(self.student.full, 0.0, device)
        self.fake_optimiser = adamw(self.fake.full, 0.0, device)
        self.levels = few_step_levels(device)
        session.seed_draws()
        batch, execution = session.scale.video_streams, training_execution(compile_blocks=session.scale.compile)
        self.pool = Pool(
            players.student.transformer, bank, self._states, batch, grid=GRID, past=WINDOW - CHUNK, chunk=CHUNK,
            sink=SINK, levels=self.levels, execution=execution,
        )  # fmt: skip
        self.fake_joint = JointPass(players.fake.transformer, GRID, frames=WINDOW, execution=execution)
        self.real_joint = JointPass(players.scorer.transformer, GRID, frames=WINDOW, execution=execution)
        self.forced = ForcedPass(
            players.student.transformer,
            GRID,
            frames=session.scale.video_window,
            chunk=CHUNK,
            window=WINDOW,
            execution=execution,
        )
        self.entry, self.entry_level = torch.zeros_like(self.pool.x), torch.zeros_like(self.pool.level)
        self.empty = self._states(bank.empty_ids[None]).to(dtype)
        self.measures = torch.zeros(3, device=device)
        self.begin = Replay(self.pool.begin, device)
        self.denoise = Replay(self.pool.denoise, device)
        self.renoise = Replay(self.pool.renoise, device)
        self.finish = Replay(self.pool.finish, device)
        self.on_streams = Replay(self._on_streams, device)
        self.on_clips = Replay(self._on_clips, device)

    @torch.no_grad()
    def _states(self, ids: Tensor) -> Tensor:
        return self.players.scorer.encode(ids)

    def set_rates(self, factor: float) -> None:
        """Set every learning rate to factor times its peak value."""
        set_rate(self.student_optimiser, STUDENT_RATE * factor)
        set_rate(self.fake_optimiser, FAKE_RATE * factor)

    def roll(self, chosen: int) -> None:
        """Generate the streams' next chunk; the input of step `chosen` is kept for the update."""
        pool = self.pool
        self.begin()
        for number in range(self.levels.shape[0]):
            pool.level.copy_(self.levels[number].expand_as(pool.level))
            if number:
                self.renoise()
            if number == chosen:
                self.entry.copy_(pool.x)
                self.entry_level.copy_(pool.level)
            self.denoise()

    def _window(self, x0: Tensor) -> Tensor:
        return torch.cat([self.pool.latents[:, :, : self.pool.past], x0], 2)

    def _condition(self) -> ForcingCondition:
        return ForcingCondition(states=self.pool.states, actions=self.pool.actions.to(self.session.dtype))

    def _on_streams(self) -> None:
        """The student's update by distribution matching, after the fake network's on the same windows."""
        pool, dtype = self.pool, self.session.dtype
        velocity = pool.velocity(self.players.student.transformer, self.entry, self.entry_level)
        x0 = clean_of(self.entry, velocity, self.entry_level)
        window, present = self._window(x0.detach()), _seen(pool.present)
        condition, weight = self._condition(), present[:, None, :, None, None].float()
        for _ in range(FAKE_UPDATES):
            levels = _levels(window.shape[0], WINDOW, self.session.device)
            noise = torch.randn_like(window)
            fake = self.fake_joint(noised(window, noise, levels).to(dtype), 1000 * levels, condition, present)
            loss = velocity_loss(fake, window, noise, weight)
            loss.backward()  # type: ignore[no-untyped-call]
            self.fake.step(self.fake_optimiser)
        gradient = self._matching_gradient(window, condition, present)
        x0.backward(gradient / gradient.numel())  # type: ignore[no-untyped-call]
        self.student.step(self.student_optimiser)
        self.measures[0].copy_(loss.detach())
        self.measures[1].copy_(gradient.abs().mean())

    @torch.no_grad()
    def _matching_gradient(self, window: Tensor, condition: ForcingCondition, present: Tensor) -> Tensor:
        """(x0_fake - x0_real) / mean |x0 - x0_real| of the newest chunk (DMD, equations 7 and 8)."""
        dtype, past = self.session.dtype, self.pool.past
        levels = _levels(window.shape[0], WINDOW, self.session.device)
        noisy = noised(window, torch.randn_like(window), levels)
        low, times = noisy.to(dtype), 1000 * levels
        fake = clean_of(noisy, self.fake_joint(low, times, condition, present), levels)
        without = ForcingCondition(
            states=self.empty.expand_as(condition.states), actions=torch.zeros_like(condition.actions)
        )
        conditional = self.real_joint(low, times, condition, present).float()
        unconditional = self.real_joint(low, times, without, present).float()
        real = clean_of(noisy, unconditional + GUIDANCE * (conditional - unconditional), levels)
        new = slice(past, None)
        distance = (window - real)[:, :, new].abs().mean((1, 2, 3, 4), keepdim=True).clamp(min=1e-2)
        gradient: Tensor = (fake - real)[:, :, new] / distance
        return gradient

    def _on_clips(self) -> None:
        """The student's update by regression to noised real chunks."""
        session = self.session
        windows = draw_windows(self.bank, session.scale.video_batch, session.scale.video_window)
        loss = clip_loss(self.forced, as_batch(windows, CHUNK), self._states(windows.ids), self.levels, session.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        self.student.step(self.student_optimiser)
        self.measures[2].copy_(loss.detach())


def clip_loss(forced: ForcedPass, batch: Batch, states: Tensor, levels: Tensor, dtype: torch.dtype) -> Tensor:
    """Regression to real chunks noised to few-step levels [n]: any of them if a chunk continues an earlier one."""
    rows, _, frames = batch.latents.shape[:3]
    device = batch.latents.device
    drawn = torch.rand(rows, frames // CHUNK, device=device).repeat_interleave(CHUNK, 1)
    choice = torch.where(batch.follows, levels.shape[0], LOW_LEVELS)
    chosen = levels.flip(0)[(choice * drawn).long().clamp(max=choice - 1)]
    noise = torch.randn_like(batch.latents)
    condition = ForcingCondition(states=states, actions=batch.actions.to(dtype))
    clean, noisy = batch.latents.to(dtype), noised(batch.latents, noise, chosen).to(dtype)
    return velocity_loss(forced(clean, noisy, 1000 * chosen, condition), batch.latents, noise, batch.weight)


def train_student(session: TrainingSession, bank: ClipBank, vocabulary: int, seconds: float) -> TrainingNetworks:
    """Distil for seconds; save student (averaged) and fake; return the averaged student."""
    players = make_players(session, vocabulary)
    game = Game(session, bank, players)
    average = Average(game.student.full, decay=0.99)
    rng, every = random.Random(session.seed), 2 * session.scale.log_every
    budget, running = CrewClock(session.crew, session.device, TimeBudget(seconds)), True
    while running:
        game.set_rates(session.rate * warm_cosine(budget.steps, budget.fraction(), floor=0.1))
        game.roll(rng.randrange(game.levels.shape[0]))
        game.on_streams()
        if budget.steps % 2:
            game.on_clips()
        game.finish()
        average.update()
        running = budget.tick()
        if budget.steps % every == 0 or not running:
            fake, gradient, clips = game.measures.tolist()
            session.log(
                STUDENT, step=float(budget.steps), fake_loss=fake, gradient=gradient, clip_loss=clips,
                rate=budget.rate,
            )  # fmt: skip
        if budget.budget.due():
            _save(session, game, average)
    average.swap()
    for master in (game.student, game.fake):
        master.release()
    save_parts(session, STUDENT, transformer=players.student.transformer)
    save_parts(session, FAKE, transformer=players.fake.transformer)
    players.student.text.load_state_dict(players.scorer.text.float().state_dict())
    return players.student


def _save(session: TrainingSession, game: Game, average: Average) -> None:
    save_parts(session, STUDENT, transformer=game.student.named(average.values)[0])
    save_parts(session, FAKE, transformer=game.fake.named(game.fake.full)[0])
