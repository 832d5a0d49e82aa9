"""Owns the training of the action embedder alone: a student is taught to answer commands better, and a stream without
actions stays what it was, to the bit.

Regression to real chunks at the few-step levels, on clips with actions. The embedder has no biases, so that no action
adds exactly 0: whatever was measured without actions still holds. Knows no pixels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from train.crew import CrewClock
from train.graphs import Replay
from train.session import Average, Budget, Master, Session, adamw, set_rate, warm_cosine
from train.video.bank import ClipBank, draw_windows
from train.video.causal import CHUNK, GRID, WINDOW, VideoNetworks, few_step_levels, make_networks
from train.video.checkpoints import require_parts, save_parts
from train.video.distill import STUDENT, clip_loss
from train.video.export import ACTIONS
from train.video.forcing import ForcedPass
from train.video.teacher import STAGE as TEACHER
from train.video.teacher import as_batch, prepare_transformer

STAGE = "actions"
RATE = 1e-3
LEVELS = 3
"""Of the few-step levels, from the noisiest: below them the noised picture itself shows how far things went."""


def steered(bank: ClipBank) -> ClipBank:
    """The clips that have actions. Raises ValueError where none has."""
    rows = (bank.actions != 0).flatten(1).any(1).nonzero().flatten()
    if not len(rows):
        raise ValueError(f"none of the bank's {bank.clips} clips has actions: make it larger (--bank-share)")
    return replace(
        bank,
        latents=bank.latents[rows],
        ids=bank.ids[rows],
        actions=bank.actions[rows],
        coverage=bank.coverage[rows],
        spec=bank.spec[rows],
    )


def train_actions(session: Session, bank: ClipBank, vocabulary: int, seconds: float) -> VideoNetworks:
    """From a student; saved as student, of which nothing but the action embedder has changed."""
    networks = make_networks(session.device, vocabulary=vocabulary, seed=session.seed)
    require_parts(session, TEACHER, text=networks.text)
    require_parts(session, STUDENT, transformer=networks.transformer)
    kept = {name: values.clone() for name, values in networks.transformer.state_dict().items()}
    prepare_transformer(networks.transformer, compile_blocks=session.scale.compile)
    for module in networks.modules:
        module.requires_grad_(False).to(session.dtype)
    embedder = networks.transformer.action_embedder
    assert embedder is not None, "make_networks gives one"
    master = Master(embedder.requires_grad_(True), dtype=session.dtype, crew=session.crew)
    session.seed_draws()
    bank = steered(bank)
    optimiser = adamw(master.full, 0.0, session.device)
    average = Average(master.full, decay=0.99)
    levels, frames = few_step_levels(session.device)[:LEVELS], session.scale.video_window
    forced = ForcedPass(networks.transformer, GRID, frames=frames, chunk=CHUNK, window=WINDOW)
    total = torch.zeros((), device=session.device)

    def step() -> None:
        windows = draw_windows(bank, session.scale.video_batch, frames)
        with torch.no_grad():
            states = networks.encode(windows.ids)
        loss = clip_loss(forced, as_batch(windows, CHUNK), states, levels, session.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        master.step(optimiser)
        total.add_(loss.detach())

    replay = Replay(step, session.device)
    total.zero_()
    budget, running = CrewClock(session.crew, session.device, Budget(seconds)), True
    every = 4 * session.scale.log_every
    while running:
        set_rate(optimiser, session.rate * RATE * warm_cosine(budget.steps, budget.fraction()))
        replay()
        average.update()
        running = budget.tick()
        if budget.steps % every == 0 or not running:
            mean = float(total) / ((budget.steps - 1) % every + 1)
            session.log(STAGE, step=float(budget.steps), loss=mean, rate=budget.rate)
            total.zero_()
    average.swap()
    master.release()
    kept |= {f"{ACTIONS}{name}": values for name, values in embedder.state_dict().items()}
    networks.transformer.float().load_state_dict(kept)
    save_parts(session, STUDENT, transformer=networks.transformer)
    return networks
